// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// What a ramp connection sends at a time, and how often: enough that something is always on its way.
const (
	rampPiece = 3000
	rampPause = 2 * time.Millisecond
	rampWait  = 60 * time.Second // for the rest, at the end
)

// rampEcho sends a ramp to an echo server and checks what comes back.
type rampEcho struct {
	conn *net.TCPConn
	stop chan struct{}
	sent chan error
	got  chan error

	total    atomic.Int64 // bytes sent
	verified atomic.Int64 // bytes that came back right
	ended    atomic.Bool
	silence  atomic.Int64 // the longest time between two arrivals, in nanoseconds
}

func startRamp(conn *net.TCPConn) *rampEcho {
	r := &rampEcho{conn: conn, stop: make(chan struct{}), sent: make(chan error, 1), got: make(chan error, 1)}
	go func() { r.sent <- r.send() }()
	go func() { r.got <- r.receive() }()
	return r
}

func (r *rampEcho) send() error {
	ramp := netnslab.NewRamp(0, -1)
	buf := make([]byte, rampPiece)
	for {
		select {
		case <-r.stop:
			return r.conn.CloseWrite()
		case <-time.After(rampPause):
		}
		_, _ = ramp.Read(buf) // a ramp without end never fails
		n, err := r.conn.Write(buf)
		r.total.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

func (r *rampEcho) receive() error {
	defer r.ended.Store(true)
	verify := netnslab.NewRampVerifier(0)
	buf := make([]byte, 64<<10)
	last := time.Now()
	for {
		n, err := r.conn.Read(buf)
		now := time.Now()
		r.silence.Store(max(r.silence.Load(), int64(now.Sub(last))))
		last = now
		if _, verr := verify.Write(buf[:n]); verr != nil {
			return verr
		}
		r.verified.Store(verify.Pos())
		switch {
		case errors.Is(err, io.EOF) && verify.Pos() != r.total.Load():
			return fmt.Errorf("%d bytes came back of %d: %w", verify.Pos(), r.total.Load(), io.ErrUnexpectedEOF)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// awaitProgress waits until more bytes have come back than had been sent when it was called, and reports whether they did.
func (r *rampEcho) awaitProgress(limit time.Duration) bool {
	want := r.total.Load()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline) && !r.ended.Load(); {
		if r.verified.Load() > want {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// longest returns the longest silence so far.
func (r *rampEcho) longest() time.Duration { return time.Duration(r.silence.Load()) }

// finish ends the ramp in order, waits up to limit for the rest, and returns how many bytes came back right.
func (r *rampEcho) finish(limit time.Duration) (int64, error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(limit))
	close(r.stop)
	err := errors.Join(<-r.sent, <-r.got, r.conn.Close())
	return r.verified.Load(), err
}
