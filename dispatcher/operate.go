// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	// stopPeekTime is how long a dispatcher that ends waits for the first requests of those who have connected already.
	stopPeekTime = time.Second
	// stopTime bounds the end, with the handoffs in flight.
	stopTime = 5 * time.Second
)

// ErrStopped means that the dispatcher is ending, and takes no orders any more.
var ErrStopped = errors.New("the dispatcher is stopping")

// order is something that an operator wants to be done.
type order struct {
	do   func(context.Context) error
	done chan error // buffered
}

// command has the goroutine that owns the plan carry out do, and returns what it returns. An order that is being carried out is so
// to its end, also when ctx ends.
func (d *Dispatcher) command(ctx context.Context, do func(context.Context) error) error {
	o := order{do: do, done: make(chan error, 1)}
	select {
	case d.orders <- o:
		return <-o.done
	case <-d.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
}

// operate carries out orders until ctx ends, and then ends what the dispatcher does for clients; stop ends the rest. What it does
// goes on for as long as serving.
func (d *Dispatcher) operate(ctx, serving context.Context, stop func()) error {
	defer stop()
	defer close(d.stopped)
	d.notify(daemon.SdNotifyReady)
	for {
		select {
		case o := <-d.orders:
			o.done <- o.do(serving)
		case <-serving.Done(): // something has failed
			return nil
		case <-ctx.Done():
			d.notify(daemon.SdNotifyStopping)
			d.finish(serving)
			return nil
		}
	}
}

// finish accepts nothing more, and waits for those who have been accepted to be handed off.
func (d *Dispatcher) finish(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	for _, w := range d.workers {
		if err := w.do(ctx, func() { w.rearrange(nil, nil) }); err != nil {
			d.log.Warn("a worker does not stop accepting", "error", err)
		}
	}
	d.await(ctx, stopPeekTime, func() bool { return d.live.Load().peeking() == 0 })
	if n := d.settle(ctx, func(*attempt) bool { return true }); n > 0 {
		d.log.Warn("ending with connections that are being handed off", "connections", n)
	}
	// Whom nobody took shall have read so.
	d.await(ctx, lingerTime, func() bool {
		n := 0
		for _, w := range d.workers {
			_ = w.do(ctx, func() { n += w.refused() })
		}
		return n == 0
	})
}

// await looks again and again whether done, until limit has passed or ctx ends.
func (d *Dispatcher) await(ctx context.Context, limit time.Duration, done func() bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for ctx.Err() == nil && !done() {
		wait(ctx, tickTime)
	}
}

// settle waits until no attempt is under way that matters, or ctx ends, and returns how many there are then. Between two attempts
// a connection is nowhere for an instant, so it looks twice.
func (d *Dispatcher) settle(ctx context.Context, matters func(*attempt) bool) int {
	for quiet := 0; ; wait(ctx, tickTime) {
		n := 0
		for _, b := range d.live.Load().hosts {
			for _, a := range b.pending() {
				if matters(a) {
					n++
				}
			}
		}
		if quiet++; n > 0 {
			quiet = 0
		}
		if quiet > 1 || ctx.Err() != nil {
			return n
		}
	}
}

// peeking counts the connections whose first request is not known yet.
func (p *plan) peeking() (n int64) {
	for _, s := range p.services {
		n += s.peeking.Load()
	}
	return n
}

func (d *Dispatcher) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.log.Warn("cannot notify the service manager", "error", err)
	}
}

// notifyReloading tells the service manager that a reload begins; READY is its end. Type=notify-reload wants the time, too.
func (d *Dispatcher) notifyReloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		d.log.Warn("cannot read the clock for the service manager", "error", err)
		return
	}
	d.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000))
}
