// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync/atomic"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// HopsConfig describes a stream in both directions under which an echo server moves.
type HopsConfig struct {
	// Server is the command of an echo server.
	Server []string
	// Moves is how often the server moves: 10 when zero.
	Moves int
	// Bytes is how many go each way at least; 4 GiB when zero. The stream goes on until the last move is over.
	Bytes int64
}

// Hops is what came of the stream.
type Hops struct {
	Mover       string `json:"mover"`
	Moves       int    `json:"moves"`
	Bytes       int64  `json:"bytes"`
	SHA256Equal bool   `json:"sha256Equal"`
	// LongestGapMillis is the longest time without a byte.
	LongestGapMillis float64 `json:"longestGapMillis"`
	MegabitsPerS     float64 `json:"megabitsPerSecond"`
	// RetransmissionTimeouts and Retransmitted are as in Pauses.
	RetransmissionTimeouts int `json:"retransmissionTimeouts"`
	Retransmitted          int `json:"retransmitted"`
}

// stream sends over a connection as fast as it goes, ends its half when it is told to, and receives what comes back.
type stream struct {
	conn *net.TCPConn
	stop atomic.Bool
	// broken is set when one half has failed.
	broken atomic.Bool
	sent   atomic.Int64
	sums   [2]hash.Hash // of what was sent, and of what came
	gap    time.Duration
	got    int64
	done   chan error
}

// newStream starts to send and to receive.
func newStream(conn *net.TCPConn) *stream {
	s := &stream{conn: conn, sums: [2]hash.Hash{sha256.New(), sha256.New()}, done: make(chan error, 2)}
	for _, half := range []func() error{s.send, s.receive} {
		go func() {
			err := half()
			if err != nil {
				s.broken.Store(true)
			}
			s.done <- err
		}()
	}
	return s
}

// finish ends the stream and waits for what is on its way; after an error it does not wait.
func (s *stream) finish(err error) error {
	s.stop.Store(true)
	limit := streamStall
	if err != nil {
		limit = 0 // nobody may be there any more
	}
	_ = s.conn.SetDeadline(time.Now().Add(limit))
	return errors.Join(err, <-s.done, <-s.done)
}

// equal reports whether what came is what was sent.
func (s *stream) equal() bool {
	return s.got == s.sent.Load() && string(s.sums[0].Sum(nil)) == string(s.sums[1].Sum(nil))
}

// send sends a ramp, which has no period that buffers have, so that what is lost, doubled or shifted shows.
func (s *stream) send() error {
	ramp := netnslab.NewRamp(0, -1)
	buf := make([]byte, 256<<10)
	for !s.stop.Load() {
		_, _ = ramp.Read(buf) // a ramp without end never fails
		s.sums[0].Write(buf)
		n, err := s.conn.Write(buf)
		s.sent.Add(int64(n))
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return s.conn.CloseWrite()
}

func (s *stream) receive() error {
	buf := make([]byte, 256<<10)
	for last := time.Now(); ; {
		n, err := s.conn.Read(buf)
		now := time.Now()
		s.gap = max(s.gap, now.Sub(last))
		last = now
		s.sums[1].Write(buf[:n])
		s.got += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive, after %d bytes: %w", s.got, err)
		}
	}
}

// MeasureHops starts an echo server and moves it to and fro under a stream.
func MeasureHops(ctx context.Context, b *ProcessBed, m ProcessMover, cfg HopsConfig) (*Hops, error) {
	if cfg.Bytes == 0 {
		cfg.Bytes = 4 << 30
	}
	cfg.Moves = PauseConfig{Moves: cfg.Moves}.withDefaults().Moves
	server, err := b.Place(ctx, m, cfg.Server)
	if err != nil {
		return nil, err
	}
	conn, err := b.Dial(ctx, m.Address())
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // both halves have ended
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	begin := time.Now()
	s := newStream(conn)
	h := &Hops{Mover: m.Name()}
	if err := s.finish(h.move(ctx, m, server, s, cfg)); err != nil {
		return nil, fmt.Errorf("%s, after %d moves: %w", m.Name(), h.Moves, err)
	}
	var again sentAgain
	again.add(conn)
	h.RetransmissionTimeouts, h.Retransmitted = again.timeouts, again.segments
	h.Bytes, h.LongestGapMillis = s.got, millis(s.gap)
	h.MegabitsPerS = float64(s.got) * 8 / time.Since(begin).Seconds() / 1e6
	h.SHA256Equal = s.equal()
	return h, b.killServers()
}

// move moves the server, evenly over the stream.
func (h *Hops) move(ctx context.Context, m ProcessMover, server *Server, s *stream, cfg HopsConfig) error {
	for h.Moves < cfg.Moves {
		if err := s.reach(ctx, int64(h.Moves+1)*cfg.Bytes/int64(cfg.Moves+1)); err != nil {
			return err
		}
		if _, err := m.Move(ctx, server, otherHost(server.Host)); err != nil {
			return err
		}
		h.Moves++
	}
	return s.reach(ctx, cfg.Bytes)
}

// streamStall is how long a stream may stand still.
const streamStall = time.Minute

// reach waits until so many bytes have been sent.
func (s *stream) reach(ctx context.Context, bytes int64) error {
	last, since := s.sent.Load(), time.Now()
	for s.sent.Load() < bytes {
		if now := s.sent.Load(); now != last {
			last, since = now, time.Now()
		}
		if s.broken.Load() {
			return fmt.Errorf("the stream has ended at %d bytes", last)
		}
		if time.Since(since) > streamStall {
			return fmt.Errorf("the stream stands still at %d bytes", last)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}
