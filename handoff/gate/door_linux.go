// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Shut makes new connections of a service of this entry wait, for at most ttl: their SYNs are kept, and nothing is decided about them. What is
// being set up already, and what is there, goes on. Shutting again renews ttl. A hold that a flow has of its own comes first.
func (g *Gate) Shut(vip netip.AddrPort, ttl time.Duration) error {
	fail := func(err error) error { return &OpError{Op: "shut " + vip.String(), Err: err} }
	if !vip.IsValid() || vip.Port() == 0 || ttl <= 0 {
		return fail(fmt.Errorf("for %v: want an address, a port and some time", ttl))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fail(ErrClosed)
	}
	q := g.doors[vip]
	if q == nil {
		q = &queue{maxPackets: g.config.HoldPackets, maxBytes: g.config.HoldBytes, room: &g.room}
		g.doors[vip] = q
	}
	q.deadline = time.Now().Add(ttl)
	now, err := monotonic()
	if err == nil {
		err = g.table.objects.Doors.Put(serviceKey(vip), gateDoor{Until: now + uint64(ttl+lapseGrace)})
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// Open ends that: the connections that waited go to the service's servers of now, in the order in which they came.
func (g *Gate) Open(vip netip.AddrPort) (Held, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return Held{}, &OpError{Op: "open " + vip.String(), Err: ErrClosed}
	}
	held, err := g.open(vip)
	if err != nil {
		return held, &OpError{Op: "open " + vip.String(), Err: err}
	}
	return held, nil
}

func (g *Gate) open(vip netip.AddrPort) (Held, error) {
	err := ignoreMissing(g.table.objects.Doors.Delete(serviceKey(vip)))
	q := g.doors[vip]
	if q == nil {
		return Held{}, err
	}
	// What went to the tap before the door was opened is there now.
	err = errors.Join(err, g.drain(drainFrames))
	delete(g.doors, vip)
	if len(q.frames) > 0 {
		err = errors.Join(err, g.inject(q.tap, q.take(), toTable))
	}
	return q.kept, err
}

// lapseDoors opens doors whose time is over, before the kernel does.
func (g *Gate) lapseDoors(now time.Time) {
	for vip, q := range g.doors {
		if now.Before(q.deadline) {
			continue
		}
		g.lapsed++
		held, err := g.open(vip)
		g.config.Logger.Warn("a service's new connections waited until their deadline", "address", vip, "packets", held.Packets, "error", err)
	}
}

// forgetDoors opens what a former process has shut in a pinned table: what it kept is lost with it, and nobody keeps what would come.
func (g *Gate) forgetDoors() error {
	var keys []gateServiceKey
	var k gateServiceKey
	var v gateDoor
	all := g.table.objects.Doors.Iterate()
	for all.Next(&k, &v) {
		keys = append(keys, k)
	}
	errs := []error{all.Err()}
	for _, k := range keys {
		errs = append(errs, ignoreMissing(g.table.objects.Doors.Delete(k)))
	}
	return errors.Join(errs...)
}

// monotonic returns the kernel's time as BPF programs see it, in nanoseconds.
func monotonic() (uint64, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, fmt.Errorf("clock: %w", err)
	}
	return uint64(t.Nano()), nil
}
