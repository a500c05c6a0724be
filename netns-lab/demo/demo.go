// SPDX-License-Identifier: Apache-2.0

// Package demo is a server written with package handoff, as an example and for the laboratory: an HTTP/1.1 file server
// with downloads, uploads and an echoing WebSocket (Files), and a plain echo (Echo). Any of its connections can move at any moment.
//
// All are one state machine, session. What it has to send next follows from the count of the bytes it has
// written, and what it has understood stands in its record, so that there is no moment at which it cannot be exported.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/rehome-net/rehome/handoff"
)

// Config says what to serve. The zero value serves echoes only.
type Config struct {
	// Agent is the path of the agent's socket, as in handoff.Config.
	Agent string
	// Files is the address for HTTP, Root the directory it serves; Echo is the address for echoes. Empty ones are not served.
	Files, Root, Echo string
	// EchoCapacity is how many connections make the echo as loaded as it can bear: it reports its load then. 0: it reports nothing.
	EchoCapacity int
	// StateBytes and AheadBytes pad the State of every connection, and what is sent ahead of it, to see what large ones cost.
	StateBytes, AheadBytes int
	// Logger gets what goes wrong. Nil: nothing.
	Logger *slog.Logger
}

// Names under which the services register.
const (
	FilesService = "files"
	EchoService  = "echo"
)

// Serve serves until ctx ends. ready, unless nil, is called once every listener stands.
func Serve(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &server{cfg: cfg, sessions: make(map[*handoff.Conn]*session)}
	var listeners []*handoff.Listener
	defer func() {
		for _, ln := range listeners {
			_ = ln.Close()
		}
	}()
	for _, l := range []struct{ service, address string }{{FilesService, cfg.Files}, {EchoService, cfg.Echo}} {
		if l.address == "" {
			continue
		}
		hc := handoff.Config{Service: l.service, Agent: cfg.Agent, Export: s.export, Import: s.check, Logger: cfg.Logger}
		if cfg.AheadBytes > 0 {
			hc.Prepare = s.prepare
		}
		ln, err := handoff.Listen(ctx, "tcp", l.address, hc)
		if err != nil {
			return err
		}
		listeners = append(listeners, ln)
		if l.service == EchoService && cfg.EchoCapacity > 0 {
			s.echo = ln
			s.count(l.service, 0)
		}
		go s.accept(ln, l.service)
	}
	if len(listeners) == 0 {
		return errors.New("demo: nothing to serve: give an address for files or for echo")
	}
	if ready != nil {
		ready()
	}
	<-ctx.Done()
	return nil
}

// server knows the session of every connection, for the exporter.
type server struct {
	cfg Config

	// buffers are what sessions read into: who gets many connections at once must not allocate as much for each.
	buffers sync.Pool

	mu       sync.Mutex
	sessions map[*handoff.Conn]*session
	// echo is the listener that reports how many echoes there are; nil when none does.
	echo   *handoff.Listener
	echoes int
}

// count counts a session of echoes that begins or ends, and reports it.
func (s *server) count(service string, by int) {
	if service != EchoService || s.echo == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.echoes += by
	s.echo.ReportLoad(float64(s.echoes) / float64(s.cfg.EchoCapacity))
}

func (s *server) accept(ln *handoff.Listener, service string) {
	for {
		c, err := ln.AcceptConn()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.cfg.Logger.Error("accept", "error", err)
			}
			return
		}
		go s.serve(c, service)
	}
}

func (s *server) serve(c *handoff.Conn, service string) {
	defer c.Close() //nolint:errcheck // nobody is left to tell
	ses := &session{conn: c, root: s.cfg.Root}
	ses.rec.Service = service
	if c.Imported() {
		if err := unmarshal(c.State().Data, &ses.rec); err != nil {
			s.cfg.Logger.Error("state", "flow", c.Flow(), "error", err) // check has seen it before
			return
		}
	}
	s.mu.Lock()
	s.sessions[c] = ses
	s.mu.Unlock()
	s.count(service, 1)
	defer s.count(service, -1)
	defer func() {
		s.mu.Lock()
		delete(s.sessions, c)
		s.mu.Unlock()
	}()
	buf, ok := s.buffers.Get().(*[chunk]byte)
	if !ok {
		buf = new([chunk]byte)
	}
	defer s.buffers.Put(buf)
	err := ses.run(buf[:])
	if err != nil && !errors.Is(err, handoff.ErrMigrated) && !errors.Is(err, io.EOF) {
		s.cfg.Logger.Warn("connection", "flow", c.Flow(), "error", err)
	}
}

// export is the handoff.Exporter: the session's record, if it has understood everything that was read.
func (s *server) export(_ context.Context, c *handoff.Conn) ([]byte, error) {
	s.mu.Lock()
	ses := s.sessions[c]
	s.mu.Unlock()
	if ses == nil {
		return nil, handoff.ErrNotNow // accepted, and not yet served
	}
	ses.mu.Lock()
	defer ses.mu.Unlock()
	if ses.rec.Understood != c.BytesRead() {
		return nil, handoff.ErrNotNow
	}
	state, err := json.Marshal(&ses.rec)
	if err != nil {
		return nil, err
	}
	return append(state, bytes.Repeat([]byte{' '}, s.cfg.StateBytes)...), nil // JSON minds no white space
}

// unmarshal is the reverse; it does not read the padding.
func unmarshal(state []byte, rec *record) error {
	return json.Unmarshal(bytes.TrimRight(state, " "), rec)
}

// prepare is the handoff.Preparer: nothing but weight.
func (s *server) prepare(context.Context, *handoff.Conn) ([]byte, error) {
	return bytes.Repeat([]byte{1}, s.cfg.AheadBytes), nil
}

// check is the handoff.Importer: a State that this server cannot go on from is refused while the source still can.
func (s *server) check(_ context.Context, _ *handoff.Conn, st handoff.State) error {
	var rec record
	if err := unmarshal(st.Data, &rec); err != nil {
		return fmt.Errorf("state: %w", err)
	}
	if len(st.Ahead) != s.cfg.AheadBytes {
		return fmt.Errorf("state: %d bytes came ahead, want %d: the servers are not set up alike", len(st.Ahead), s.cfg.AheadBytes)
	}
	_, err := rec.Reply.open(s.cfg.Root)
	return err
}
