// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// chatEvery is the pause between two lines of a client of Shed.
	chatEvery = 200 * time.Millisecond
	// chatLimit is how long it waits for an echo.
	chatLimit = 10 * time.Second
	// connecting is how many connect at a time.
	connecting = 16
)

// chatters are clients with a connection each, who send a line now and then and want it echoed.
type chatters struct {
	conns  []net.Conn
	ending chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	echoes  int
	errors  int
	longest time.Duration
}

// connectChatters connects so many clients, and has each talk once: a connection is handed off with its first bytes.
func connectChatters(ctx context.Context, dial dialer, n int) (_ *chatters, err error) {
	c := &chatters{conns: make([]net.Conn, n), ending: make(chan struct{})}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(connecting)
	for i := range n {
		group.Go(func() error {
			conn, err := dial(gctx)
			if err != nil {
				return err
			}
			c.conns[i] = conn
			return echo(conn, fmt.Appendf(nil, "client %d\n", i))
		})
	}
	if err := group.Wait(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *chatters) close() {
	for _, conn := range c.conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// chat has all of them talk until stop.
func (c *chatters) chat(ctx context.Context) {
	for i, conn := range c.conns {
		c.wg.Go(func() { c.talk(ctx, i, conn) })
	}
}

func (c *chatters) talk(ctx context.Context, client int, conn net.Conn) {
	first := chatEvery * time.Duration(client) / time.Duration(len(c.conns)) // one after the other
	for line := 0; ; line++ {
		wait := chatEvery
		if line == 0 {
			wait = first
		}
		select {
		case <-ctx.Done():
			return
		case <-c.ending:
			return
		case <-time.After(wait):
		}
		began := time.Now()
		err := echo(conn, fmt.Appendf(nil, "client %d, line %d\n", client, line))
		c.mu.Lock()
		c.longest = max(c.longest, time.Since(began))
		if err == nil {
			c.echoes++
		} else {
			c.errors++
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// stop ends the talk, and returns how many lines were echoed, how many clients saw an error, and the longest wait in milliseconds.
func (c *chatters) stop() (echoes, errors int, longest float64) {
	close(c.ending)
	c.wg.Wait()
	return c.echoes, c.errors, float64(c.longest.Microseconds()) / 1000
}

// echo sends a line and wants it back.
func echo(conn net.Conn, line []byte) error {
	if err := conn.SetDeadline(time.Now().Add(chatLimit)); err != nil {
		return err
	}
	if _, err := conn.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != string(line) {
		return fmt.Errorf("%q was echoed as %q", line, got)
	}
	return nil
}
