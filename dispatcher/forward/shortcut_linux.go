// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/vishvananda/netns"

	"github.com/rehome-net/rehome/handoff/shortcut"
)

const (
	// shortcutInterval is how often it is looked whether the other ends of veth pairs are what they were. For so long, frames may be lost
	// that are sent to one that has come into this namespace.
	shortcutInterval = time.Second
	// proofInterval is the time between two vain questions at first; it doubles up to maxProofInterval.
	proofInterval    = time.Second
	maxProofInterval = time.Minute
)

// portPeer is PORT_PEER in bpf/table.h.
const portPeer = 1

var (
	errUnproved = errors.New("not tried yet")
	errOff      = errors.New("switched off")
	errXDP      = errors.New("XDP knows none")
)

// Ways tells how frames leave by the interfaces, in the order of Config.Interfaces.
func (f *Forwarder) Ways() []Way {
	f.ports.Lock()
	defer f.ports.Unlock()
	var ways []Way
	for _, p := range f.points {
		w := Way{Interface: p.name, Shortcut: p.short, Why: p.why}
		switch {
		case f.config.NoShortcut:
			w.Why = errOff
		case f.mode == XDP:
			w.Why = errXDP
		}
		ways = append(ways, w)
	}
	return ways
}

// proof is what is known of one interface's shortcut.
type proof struct {
	done bool
	next time.Time // when to ask again
	wait time.Duration
}

// tendShortcuts uses shortcuts that are there and have been seen to work, for as long as they are there, until ctx is done. What keeps it from
// doing so is no fault: frames go the whole way.
func (f *Forwarder) tendShortcuts(ctx context.Context) {
	runtime.LockOSThread()
	var (
		stay bool
		err  error
	)
	if !f.withHandles(func() { stay, err = f.enter() }) {
		runtime.UnlockOSThread()
		return
	}
	if err != nil {
		for _, p := range f.points {
			f.setShortcut(p, fmt.Errorf("enter the interface's network namespace: %w", err))
		}
		runtime.UnlockOSThread()
		return
	}
	if stay {
		defer runtime.UnlockOSThread()
	}
	tick := time.NewTicker(shortcutInterval)
	defer tick.Stop()
	proofs := make([]proof, len(f.points))
	for {
		for i, p := range f.points {
			open := f.withHandles(func() {
				if err, known := f.examine(p, &proofs[i], time.Now()); known {
					f.setShortcut(p, err)
				}
			})
			if !open {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// enter brings the calling thread into the namespace that Open was called in. stay is whether it was there before; otherwise the thread must
// end with its goroutine.
func (f *Forwarder) enter() (stay bool, err error) {
	here, err := netns.Get()
	if err != nil {
		return false, err
	}
	defer here.Close() //nolint:errcheck // nothing was written
	if here.Equal(f.namespace) {
		return true, nil
	}
	return false, netns.Set(f.namespace)
}

// examine returns why frames cannot take the shortcut at an interface; known is false where it is not yet time to ask again.
func (f *Forwarder) examine(p *point, of *proof, now time.Time) (why error, known bool) {
	if err := shortcut.Examine(f.nl, p.ifindex, shortcut.Gate); err != nil {
		*of = proof{}
		return err, true
	}
	if of.done {
		return nil, true
	}
	if now.Before(of.next) {
		return nil, false
	}
	peers, err := shortcut.Neighbours(f.nl, p.ifindex, f.config.Peers...)
	if err == nil {
		err = shortcut.Prove(f.nl, p.ifindex, peers)
	}
	of.done = err == nil
	if errors.Is(err, shortcut.ErrNoNeighbour) {
		return err, true // it costs nothing to look again soon
	}
	of.wait = min(max(2*of.wait, proofInterval), maxProofInterval)
	of.next = now.Add(of.wait)
	return err, true
}

// setShortcut switches the frames of an interface: by the shortcut if why is nil.
func (f *Forwarder) setShortcut(p *point, why error) {
	f.ports.Lock()
	was := p.short
	p.short, p.why = why == nil, why
	if p.short == was {
		f.ports.Unlock()
		return
	}
	err := f.register(p)
	if err != nil {
		p.short, p.why = was, err
	}
	f.ports.Unlock()
	switch {
	case err != nil:
		f.config.Logger.Error("shortcut", "interface", p.name, "error", err)
		return
	case why == nil:
		f.config.Logger.Info("frames go on at the other end of the veth pair at once", "interface", p.name)
	default:
		f.config.Logger.Warn("frames leave by the interface itself again", "interface", p.name, "why", why)
	}
	if f.config.ShortcutChanged != nil {
		f.config.ShortcutChanged(p.ifindex, why == nil)
	}
}
