// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// PingPong is a client that sends a message, waits for its echo, and sends the next: what an interactive user or a request/response protocol feels.
type PingPong struct {
	// Size of a message in bytes; 0 means 64.
	Size int
	// Rounds is how many; 0 means until the context ends.
	Rounds int
	// Interval is the pause between an echo and the next message; 0 means none.
	Interval time.Duration
}

// Run plays against an echo server at the other end of conn. Messages are pieces of the ramp; a wrong echo is an ErrMismatch. With Rounds 0 the end of
// ctx is the regular end, between two messages; a message under way is then finished for up to a second.
// Response times are from before the write to the last byte of the echo. They are right as far as it came, also with an error.
func (p PingPong) Run(ctx context.Context, conn net.Conn) (Latencies, error) {
	size := p.Size
	if size == 0 {
		size = 64
	}
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Now().Add(time.Second)) // a closed connection needs no deadline
	})
	defer stop()
	var (
		times  Latencies
		out    = NewRamp(0, -1)
		verify = NewRampVerifier(0)
		buf    = make([]byte, size)
	)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for n := 0; p.Rounds == 0 || n < p.Rounds; n++ {
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		switch {
		case ctx.Err() == nil:
		case p.Rounds == 0:
			return times, nil
		default:
			return times, fmt.Errorf("ping-pong: %d of %d rounds: %w", n, p.Rounds, ctx.Err())
		}
		_, _ = out.Read(buf) // a ramp without end never fails
		sent := time.Now()
		if _, err := conn.Write(buf); err != nil {
			return times, fmt.Errorf("ping-pong: round %d: %w", n, err)
		}
		if _, err := io.ReadFull(conn, buf); err != nil {
			return times, fmt.Errorf("ping-pong: round %d: %w", n, err)
		}
		times.Add(time.Since(sent))
		if _, err := verify.Write(buf); err != nil {
			return times, fmt.Errorf("ping-pong: round %d: %w", n, err)
		}
		pause.Reset(p.Interval)
	}
	return times, nil
}

// Echo sends back what comes over conn until its end: the other side of PingPong. It does not close conn.
func Echo(conn io.ReadWriter) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if _, werr := conn.Write(buf[:n]); werr != nil {
			return fmt.Errorf("echo: %w", werr)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("echo: %w", err)
		}
	}
}
