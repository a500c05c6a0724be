// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// readBatch is how many frames a reader sorts before it lets others have the queues.
	readBatch = 256
	// lapseInterval is how often queues are looked through for holds past their deadline.
	lapseInterval = 10 * time.Millisecond
	// sweepInterval is how often the flow tables are. It is also the grace between the two steps of a deletion.
	sweepInterval = 5 * time.Second
)

// Run moves held frames out of the taps, ends queues whose hold has lapsed, and deletes idle flows, until ctx is done.
// Without it the taps' rings (16,384 frames, all flows together) are all there is to hold packets in. It may be run
// again after it has returned.
func (g *Gate) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, t := range g.taps {
		// A Run before this one has left a deadline in the past.
		if err := t.file.SetReadDeadline(time.Time{}); err != nil {
			if g.isClosed() {
				err = ErrClosed
			}
			return &OpError{Op: "run", Err: err}
		}
		stop := context.AfterFunc(ctx, func() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		group.Go(func() error { return g.read(ctx, i, t) })
	}
	group.Go(func() error { return g.tend(ctx) })
	if err := group.Wait(); err != nil {
		return &OpError{Op: "run", Err: err}
	}
	return nil
}

// read sorts the frames of one tap whenever some are there.
func (g *Gate) read(ctx context.Context, i int, t *tap) error {
	for {
		var failed error
		err := t.conn.Read(func(uintptr) bool {
			var n int
			n, failed = g.readSome(i, t)
			return failed != nil || n == readBatch // false: the tap is empty, wait for it
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case failed != nil:
			return failed
		case err != nil && g.isClosed():
			return ErrClosed
		case err != nil:
			return fmt.Errorf("wait for the tap: %w", err)
		}
	}
}

func (g *Gate) isClosed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.closed
}

func (g *Gate) readSome(i int, t *tap) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return 0, ErrClosed
	}
	return t.drain(readBatch, func(frame []byte) { g.keep(i, frame) })
}

// tend does what only time demands.
func (g *Gate) tend(ctx context.Context) error {
	lapse, sweep := time.NewTicker(lapseInterval), time.NewTicker(sweepInterval)
	defer lapse.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-lapse.C:
			g.mu.Lock()
			if !g.closed {
				g.lapse(now)
			}
			g.mu.Unlock()
		case <-sweep.C:
			if err := g.sweep(); err != nil {
				return err
			}
		}
	}
}
