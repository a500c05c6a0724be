// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/rehome-net/rehome/agent"
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
	// ImageBytes is what was carried to the target, before or after the server ran there.
	ImageBytes int64
}

// Migrator moves with `rehome migrate --process`.
type Migrator struct {
	bed *ProcessBed
	// Lazy lets the memory follow.
	Lazy bool
}

// NewMigrator returns the mover of the bed's agents.
func NewMigrator(b *ProcessBed) *Migrator { return &Migrator{bed: b} }

// Name implements ProcessMover.
func (r *Migrator) Name() string {
	if r.Lazy {
		return "rehome lazy"
	}
	return "rehome"
}

// Address implements ProcessMover.
func (r *Migrator) Address() netip.AddrPort {
	return netip.AddrPortFrom(r.bed.Lab.Topology().VIP4(), r.bed.cfg.Port)
}

// Place implements ProcessMover; the entry finds out by itself.
func (*Migrator) Place(string) error { return nil }

// processMoves is what `rehome migrate --process --output json` prints, and processMoved what it says of one process.
type processMoves struct {
	Processes []processMoved `json:"processes"`
}

type processMoved struct {
	NewPID       int    `json:"newPid"`
	Outcome      string `json:"outcome"`
	Error        string `json:"error"`
	FreezeMicros int64  `json:"freezeMicros"`
	TotalMicros  int64  `json:"totalMicros"`
	ImageBytes   int64  `json:"imageBytes"`
	LazyBytes    int64  `json:"lazyBytes"`
}

// Move implements ProcessMover.
func (r *Migrator) Move(ctx context.Context, s *Server, to string) (ProcessMoved, error) {
	command := r.bed.cfg.Command
	args := append(command[1:len(command):len(command)], "migrate", "--process", strconv.Itoa(s.PID), "--to", to, "--output", "json")
	if r.Lazy {
		args = append(args, "--lazy")
	}
	cmd := r.bed.host(s.Host).Command(ctx, command[0], args...)
	cmd.Env = append(os.Environ(), "REHOME_AGENT="+ControlSocket(r.bed.Lab.Topology().Name, s.Host))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return ProcessMoved{}, fmt.Errorf("rehome migrate: %w: %s%s", err, stderr.Bytes(), out)
	}
	m, err := readProcessMoved(out)
	if err != nil {
		return ProcessMoved{}, fmt.Errorf("rehome migrate says %q: %w", out, err)
	}
	s.Host, s.PID = to, m.NewPID
	return ProcessMoved{
		Total: time.Duration(m.TotalMicros) * time.Microsecond, Freeze: time.Duration(m.FreezeMicros) * time.Microsecond, ImageBytes: m.ImageBytes + m.LazyBytes,
	}, nil
}

// readProcessMoved reads what a command that was to move one process has printed.
func readProcessMoved(out []byte) (processMoved, error) {
	var v processMoves
	if err := json.Unmarshal(out, &v); err != nil {
		return processMoved{}, err
	}
	if len(v.Processes) != 1 {
		return processMoved{}, fmt.Errorf("%d processes instead of one", len(v.Processes))
	}
	m := v.Processes[0]
	if m.Outcome != agent.OutcomeMoved || m.NewPID <= 0 {
		return m, fmt.Errorf("%s, as process %d: %s", m.Outcome, m.NewPID, m.Error)
	}
	return m, nil
}
