// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// sweepInterval is how often entries are removed whose ports are used again.
	sweepInterval = 5 * time.Second
	// idleInterval is how often those are that no packet was seen of for Config.IdleTimeout.
	idleInterval = time.Minute
	// muteTime is how long after Settle this host stays mute, and muteInterval how often what is over of that is looked for.
	muteTime     = 50 * time.Millisecond
	muteInterval = 20 * time.Millisecond
)

// Run removes what is over, until ctx is done. What fails is tried again: it returns an error only when that has gone on for a minute, or the gate is
// closed.
func (g *Gate) Run(ctx context.Context) error {
	tick, quick := time.NewTicker(sweepInterval), time.NewTicker(muteInterval)
	defer tick.Stop()
	defer quick.Stop()
	tending, unmuting := trouble{what: "remove what is over"}, trouble{what: "let this host speak again"}
	var looked time.Time
	for ctx.Err() == nil {
		now := time.Now()
		idle := now.Sub(looked) >= idleInterval
		err := g.tend(now, idle)
		if idle && err == nil {
			looked = now
		}
		if err := tending.take(now, err, g.config.Logger); err != nil {
			return &OpError{Op: "run", Err: err}
		}
		if err := g.await(ctx, tick.C, quick.C, &unmuting); err != nil {
			return &OpError{Op: "run", Err: err}
		}
	}
	return nil
}

// await lets this host speak again until it is time to look at the rest.
func (g *Gate) await(ctx context.Context, tick, quick <-chan time.Time, t *trouble) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
			return nil
		case now := <-quick:
			if err := t.take(now, g.unmute(now), g.config.Logger); err != nil {
				return err
			}
		}
	}
}

func (g *Gate) unmute(now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	var over []tcprepair.Flow
	for f, until := range g.mutes {
		if now.Before(until) {
			continue
		}
		if err := g.without(g.rules.of(f.Local.Addr().Is4()).muted, encodeKey(f)); err != nil {
			return err
		}
		if over = append(over, f); len(over) == maxBatch {
			break // the rest is for the next time
		}
	}
	if len(over) == 0 {
		return nil
	}
	if err := g.flush(); err != nil {
		return err // they are tried again
	}
	for _, f := range over {
		delete(g.mutes, f)
	}
	return nil
}

// tend does what only time demands.
func (g *Gate) tend(now time.Time, idle bool) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	for _, f := range g.holds.lapse(now) {
		g.lapsed++
		g.config.Logger.Warn("hold ended by its deadline", "flow", f)
	}
	err := g.sweep()
	before := maps.Clone(g.ledger.flows)
	g.mu.Unlock()
	if err != nil || !idle || len(before) == 0 {
		return err
	}
	return g.forgetIdle(before)
}

// forgetIdle removes those flows that no packet was seen of for long. What is seen is read without the lock, as it can be much: a flow that
// was in the ledger before that, and is not seen, has been idle. But the kernel gives a long list in parts, and where elements come and go
// in between it may leave one out that is there: only who is missing the next time, too, is forgotten.
func (g *Gate) forgetIdle(before map[tcprepair.Flow]gate.RouteInfo) error {
	for i := range g.rules.versions {
		seen := g.rules.versions[i].seen
		elements, err := g.reader.GetSetElements(seen)
		if err != nil {
			return fmt.Errorf("read %s: %w", seen.Name, err)
		}
		for _, e := range elements {
			if flow, err := decodeKey(e.Key); err == nil {
				delete(before, flow)
			}
		}
	}
	idle := inBoth(g.unseen, before)
	g.unseen = before
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	return g.remove(g.ledger.begun(g.ledger.unchanged(idle)))
}

// sweep removes entries of connections whose ports have been used again. It is called with the lock held.
func (g *Gate) sweep() error {
	if len(g.ledger.flows) == 0 {
		return nil
	}
	var fresh []tcprepair.Flow
	for i := range g.rules.versions {
		elements, err := g.elements(g.rules.versions[i].fresh)
		if err != nil {
			return err
		}
		for _, e := range elements {
			if flow, err := decodeKey(e.Key); err == nil {
				fresh = append(fresh, flow)
			}
		}
	}
	return g.remove(g.ledger.begun(fresh))
}
