// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// answerLimit is how long an answer may take before it counts as an error.
const answerLimit = 30 * time.Second

// dialogue is what a client says over its connection, and knows of the answers.
type dialogue interface {
	// open starts anew on a connection.
	open(conn net.Conn)
	// ask asks once and checks the answer.
	ask() error
}

// asker is a client with one kept connection. It asks, and asks again some time after the answer; if the connection fails it makes another.
type asker struct {
	dial     func(context.Context) (*net.TCPConn, error)
	dialogue dialogue
	interval time.Duration

	longest atomic.Int64 // of the answers' times, in nanoseconds
	answers atomic.Int64

	mu         sync.Mutex
	errs       []error // the first ones
	failed     int
	reconnects int
	sentAgain  sentAgain // by connections that are closed
	conn       *net.TCPConn
}

// keptErrors bounds how many errors are kept for the report.
const keptErrors = 5

// run asks until ctx ends, which is the regular end.
func (a *asker) run(ctx context.Context) {
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			a.mu.Lock()
			a.reconnects++
			a.mu.Unlock()
		}
		conn, err := a.dial(ctx)
		if err == nil {
			err = a.talk(ctx, conn)
		}
		if ctx.Err() != nil {
			return
		}
		a.fail(err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// talk asks over one connection.
func (a *asker) talk(ctx context.Context, conn *net.TCPConn) error {
	a.mu.Lock()
	a.conn = conn
	a.mu.Unlock()
	defer a.hangUp()
	a.dialogue.open(conn)
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		begin := time.Now()
		if err := conn.SetDeadline(begin.Add(answerLimit)); err != nil {
			return err
		}
		if err := a.dialogue.ask(); err != nil {
			return fmt.Errorf("answer %d: %w", a.answers.Load()+1, err)
		}
		a.longest.Store(max(a.longest.Load(), int64(time.Since(begin))))
		a.answers.Add(1)
		pause.Reset(a.interval)
	}
}

// hangUp closes the connection and keeps its counts.
func (a *asker) hangUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sentAgain.add(a.conn)
	_ = a.conn.Close()
	a.conn = nil
}

// sentAgain counts what clients' kernels have sent more than once (TCP_INFO). A lone segment whose acknowledgement is late is first sent
// again as a tail loss probe (RFC 8985, after 200 ms or more), which is no timeout by that count.
type sentAgain struct{ segments, timeouts int }

func (s *sentAgain) add(conn *net.TCPConn) {
	info, err := netnslab.ReadTCPInfo(conn)
	if err != nil {
		return // closed
	}
	s.segments += int(info.Retransmitted)
	s.timeouts += int(info.Timeouts)
}

func (a *asker) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed++
	if len(a.errs) < keptErrors {
		a.errs = append(a.errs, err)
	}
}

// askers are clients that ask at the same time.
type askers struct {
	list []*asker
	stop context.CancelFunc
	done sync.WaitGroup
}

// startAskers starts n clients and returns when each has had an answer. dialogue makes what a client says.
func startAskers(ctx context.Context, n int, interval time.Duration, dial func(context.Context) (*net.TCPConn, error), dialogue func(client int) dialogue) (*askers, error) {
	ctx, cancel := context.WithCancel(ctx)
	g := &askers{stop: cancel}
	for i := range n {
		a := &asker{dial: dial, dialogue: dialogue(i), interval: interval}
		g.list = append(g.list, a)
		g.done.Go(func() { a.run(ctx) })
	}
	if err := g.await(ctx); err != nil {
		g.close()
		return nil, err
	}
	return g, nil
}

// close ends the clients, each after the answer that it waits for.
func (g *askers) close() {
	g.stop()
	g.done.Wait()
}

// await waits until every client has had the answer to a question that it asks from now on.
func (g *askers) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*answerLimit)
	defer cancel()
	want := make([]int64, len(g.list))
	for i, a := range g.list {
		want[i] = a.answers.Load() + 2
	}
	for i, a := range g.list {
		for a.answers.Load() < want[i] {
			select {
			case <-ctx.Done():
				return fmt.Errorf("client %d of %d gets no answers: %w", i+1, len(g.list), errors.Join(ctx.Err(), errors.Join(g.errors()...)))
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}

// longest returns the longest time that an answer to each client has taken since it was called last, in milliseconds.
func (g *askers) longest() []float64 {
	list := make([]float64, 0, len(g.list))
	for _, a := range g.list {
		list = append(list, millis(time.Duration(a.longest.Swap(0))))
	}
	return list
}

// askerCounts are the sums of what clients have counted.
type askerCounts struct {
	answers            int64
	errors, reconnects int
	sentAgain
}

// counts returns the sums so far.
func (g *askers) counts() (c askerCounts) {
	for _, a := range g.list {
		c.answers += a.answers.Load()
		a.mu.Lock()
		c.errors += a.failed
		c.reconnects += a.reconnects
		c.segments += a.sentAgain.segments
		c.timeouts += a.sentAgain.timeouts
		if a.conn != nil {
			c.add(a.conn)
		}
		a.mu.Unlock()
	}
	return c
}

// errors returns the first errors of every client.
func (g *askers) errors() []error {
	var list []error
	for _, a := range g.list {
		a.mu.Lock()
		list = append(list, a.errs...)
		a.mu.Unlock()
	}
	return list[:min(len(list), keptErrors)]
}

// lineDialogue sends a line to an echo server.
type lineDialogue struct {
	conn net.Conn
	n    int
}

func (d *lineDialogue) open(conn net.Conn) { d.conn = conn }

func (d *lineDialogue) ask() error {
	d.n++
	line := fmt.Appendf(nil, "line %09d\n", d.n)
	if _, err := d.conn.Write(line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(d.conn, got); err != nil {
		return err
	}
	if string(got) != string(line) {
		return fmt.Errorf("%w: got %q, want %q", netnslab.ErrMismatch, got, line)
	}
	return nil
}
