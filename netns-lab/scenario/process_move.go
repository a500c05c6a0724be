// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"time"
)

// ProcessMover moves a server, with its live connections, from host to host.
type ProcessMover interface {
	Name() string
	// Address is where clients find the server, wherever it is.
	Address() netip.AddrPort
	// Place makes the address lead to a host: called once, before the server is used.
	Place(host string) error
	// Move moves the server and notes in it where it is. After an error it is where it was, or gone.
	Move(ctx context.Context, s *Server, to string) (ProcessMoved, error)
}

// ProcessMoved is what a mover says of a move.
type ProcessMoved struct {
	// Total is the whole move, Freeze the time in which the server stood still, where the mover says so.
	Total, Freeze time.Duration
	// ImageBytes is what was carried to the target.
	ImageBytes int64
}

// Migrator moves with `rehome migrate --process`.
type Migrator struct{ bed *ProcessBed }

// NewMigrator returns the mover of the bed's agents.
func NewMigrator(b *ProcessBed) *Migrator { return &Migrator{bed: b} }

// Name implements ProcessMover.
func (*Migrator) Name() string { return "rehome" }

// Address implements ProcessMover.
func (r *Migrator) Address() netip.AddrPort {
	return netip.AddrPortFrom(r.bed.Lab.Topology().VIP4(), r.bed.cfg.Port)
}

// Place implements ProcessMover; the entry finds out by itself.
func (*Migrator) Place(string) error { return nil }

// processMoved is what `rehome migrate --process --output json` prints last.
type processMoved struct {
	PID          int    `json:"pid"`
	Outcome      string `json:"outcome"`
	Error        string `json:"error"`
	FreezeMicros int64  `json:"freezeMicros"`
	TotalMicros  int64  `json:"totalMicros"`
	ImageBytes   int64  `json:"imageBytes"`
}

// Move implements ProcessMover.
func (r *Migrator) Move(ctx context.Context, s *Server, to string) (ProcessMoved, error) {
	command := r.bed.cfg.Command
	args := append(command[1:len(command):len(command)], "migrate", "--process", strconv.Itoa(s.PID), "--to", to, "--output", "json")
	cmd := r.bed.host(s.Host).Command(ctx, command[0], args...)
	cmd.Env = append(os.Environ(), "REHOME_AGENT="+ControlSocket(r.bed.Lab.Topology().Name, s.Host))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return ProcessMoved{}, fmt.Errorf("rehome migrate: %w: %s%s", err, stderr.Bytes(), out)
	}
	m, err := lastMoved(out)
	if err != nil {
		return ProcessMoved{}, fmt.Errorf("rehome migrate says %q: %w", out, err)
	}
	s.Host = to
	if m.PID != 0 {
		s.PID = m.PID
	}
	return ProcessMoved{
		Total: time.Duration(m.TotalMicros) * time.Microsecond, Freeze: time.Duration(m.FreezeMicros) * time.Microsecond, ImageBytes: m.ImageBytes,
	}, nil
}

// lastMoved returns the last of the JSON values that a command has printed.
func lastMoved(out []byte) (m processMoved, err error) {
	d := json.NewDecoder(bytes.NewReader(out))
	for found := false; ; found = true {
		var v processMoved
		err := d.Decode(&v)
		switch {
		case errors.Is(err, io.EOF) && found:
			return m, nil
		case errors.Is(err, io.EOF):
			return m, io.ErrUnexpectedEOF
		case err != nil:
			return m, err
		case v.PID < 0:
			return m, fmt.Errorf("process %d", v.PID)
		}
		m = v
	}
}
