// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Hold drops the packets that come for a flow (Ingress), or those that this host sends of it (Egress), for at most ttl; the kernel ends it then,
// whatever has become of this process. Holding again renews ttl and may add a direction.
//
// Both is for the time in which this host has the connection frozen. At a server that drops both. At an entry what comes reaches the socket, which
// keeps it (tcprepair.Watermark.Missed) and can tell nobody: what is not brought to the next owner the client sends again.
func (g *Gate) Hold(f tcprepair.Flow, d gate.Direction, ttl time.Duration) error {
	return g.HoldAll(d, ttl, f)
}

// HoldAll is Hold for many flows. On an error some may be held; Unhold them or let ttl pass.
func (g *Gate) HoldAll(d gate.Direction, ttl time.Duration, flows ...tcprepair.Flow) error {
	if d == 0 || d&^(gate.Ingress|gate.Egress) != 0 || ttl <= 0 {
		return &OpError{Op: "hold", Err: fmt.Errorf("direction %d for %v: want Ingress, Egress or both, for some time", d, ttl)}
	}
	for _, f := range flows {
		if !f.IsValid() {
			return &OpError{Op: "hold", Flow: f, Err: errors.New("flow is not valid")}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return &OpError{Op: "hold", Err: ErrClosed}
	}
	d = g.rules.directions(d)
	for part := range slices.Chunk(flows, maxBatch) {
		var errs []error
		for _, f := range part {
			errs = append(errs, g.hold(f, d, ttl))
		}
		if err := errors.Join(append(errs, g.flush())...); err != nil {
			return &OpError{Op: "hold", Flow: part[0], Err: err}
		}
		deadline := time.Now().Add(ttl)
		for _, f := range part {
			g.holds.held[f] = hold{until: deadline, directions: g.holds.held[f].directions | d}
		}
	}
	return nil
}

// hold adds elements to the transaction. One that is there keeps its deadline when it is added again (below Linux 6.12): it makes room first.
func (g *Gate) hold(f tcprepair.Flow, d gate.Direction, ttl time.Duration) error {
	before := g.holds.held[f].directions
	e := nftables.SetElement{Key: encodeKey(f), Timeout: ttl}
	errs := []error{g.unhold(f)}
	if _, ok := g.mutes[f]; ok {
		delete(g.mutes, f)
		errs = append(errs, g.without(g.rules.of(f.Local.Addr().Is4()).muted, e.Key))
	}
	for _, s := range g.rules.holding(f, before|d) {
		errs = append(errs, g.conn.SetAddElements(s, []nftables.SetElement{e}))
	}
	return errors.Join(errs...)
}

// Serve says that this host serves the flow from now on: what a Forward has left is cancelled. The hold goes on for ttl at most, to be ended
// by Release.
func (g *Gate) Serve(f tcprepair.Flow, ttl time.Duration) error {
	return g.change("serve", f, func() error {
		err := g.unstray(f)
		if g.holds.isHeld(f) {
			err = errors.Join(err, g.hold(f, 0, ttl))
		}
		return err
	}, func() {
		delete(g.holds.strays, f)
		if h, ok := g.holds.held[f]; ok {
			h.until = time.Now().Add(ttl)
			g.holds.held[f] = h
		}
	})
}

// Release lets the flow's packets through to this host, which serves it: what a Forward has left is cancelled, too. What came before is
// gone, and its sender sends it again. gate.ErrNoFlow when the flow is neither held nor forwarded.
func (g *Gate) Release(f tcprepair.Flow) (gate.Held, error) {
	return gate.Held{}, g.letGo("release", f, true)
}

// Unhold ends a hold and leaves the rest as it is; gate.ErrNoFlow when the flow is not held.
func (g *Gate) Unhold(f tcprepair.Flow) error { return g.letGo("unhold", f, false) }

// Yield ends the hold of a flow that this host turned out not to serve.
func (g *Gate) Yield(f tcprepair.Flow) error { return g.letGo("yield", f, false) }

func (g *Gate) letGo(op string, f tcprepair.Flow, serves bool) error {
	return g.change(op, f, func() error {
		_, stray := g.holds.strays[f]
		if !g.holds.isHeld(f) && (!stray || !serves) {
			return gate.ErrNoFlow
		}
		err := g.unhold(f)
		if serves {
			err = errors.Join(err, g.unstray(f))
		}
		return err
	}, func() {
		delete(g.holds.held, f)
		if serves {
			delete(g.holds.strays, f)
		}
	})
}

// unhold takes out what holds the flow; nothing if it is not held.
func (g *Gate) unhold(f tcprepair.Flow) error {
	var errs []error
	for _, s := range g.rules.holding(f, g.holds.held[f].directions) {
		errs = append(errs, g.without(s, encodeKey(f)))
	}
	return errors.Join(errs...)
}

func (g *Gate) unstray(f tcprepair.Flow) error {
	s, ok := g.holds.strays[f]
	if !ok {
		return nil
	}
	return g.withoutElement(g.rules.of(f.Local.Addr().Is4()).strays, strayElement(f, s.to))
}

// change carries out one transaction about one flow, and then notes what it has done.
func (g *Gate) change(op string, f tcprepair.Flow, add func() error, done func()) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	err := ErrClosed
	if !g.closed {
		err = add()
	}
	if err == nil {
		err = g.flush()
	}
	if err != nil {
		return &OpError{Op: op, Flow: f, Err: err}
	}
	done()
	return nil
}

// Forward ends the hold and sends the flow's packets to another node for ttl, as its entry may not have switched the path for all of them
// yet. There are never held packets to return. An entry's own record of the owner, if there is one, comes first.
func (g *Gate) Forward(f tcprepair.Flow, to gate.Node, ttl time.Duration) ([][]byte, error) {
	if to == 0 || to >= MaxNodes || ttl <= 0 || !f.IsValid() {
		return nil, &OpError{Op: "forward", Flow: f, Err: fmt.Errorf("to node %d for %v: want another host, for some time", to, ttl)}
	}
	return nil, g.change("forward", f, func() error {
		v := g.rules.of(f.Local.Addr().Is4())
		g.ensureChain(to)
		err := errors.Join(g.unstray(f), g.unhold(f))
		e := strayElement(f, to)
		e.Timeout = ttl
		return errors.Join(err, g.conn.SetAddElements(v.strays, []nftables.SetElement{e}))
	}, func() {
		g.chains[to] = true
		delete(g.holds.held, f)
		g.holds.strays[f] = stray{to: to, until: time.Now().Add(ttl)}
	})
}

func strayElement(f tcprepair.Flow, to gate.Node) nftables.SetElement {
	return nftables.SetElement{Key: encodeKey(f), VerdictData: toNode(to), Comment: chainName(to)}
}

// Divert sends frames to another host, in order, ahead of the Settle that ends the hold. What comes until then is dropped, so nothing
// overtakes, and ttl is not needed. gate.ErrFrame if one is not of the flow, and then none is sent.
func (g *Gate) Divert(f tcprepair.Flow, to gate.Node, _ time.Duration, before ...[]byte) error {
	if err := check(f, before); err != nil {
		return &OpError{Op: "divert", Flow: f, Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	err := ErrClosed
	if !g.closed {
		err = nil
		if w, ok := g.nodes[to]; len(before) > 0 && ok {
			err = g.wire.send(w, before)
		} else if len(before) > 0 {
			err = fmt.Errorf("the way to node %d is not known", to)
		}
	}
	if err != nil {
		return &OpError{Op: "divert", Flow: f, Err: err}
	}
	return nil
}

// Replay gives frames that another host has sent after its connection to the local stack, past this host's own hold. gate.ErrFrame if one is
// not of the flow, and then none is given.
func (g *Gate) Replay(f tcprepair.Flow, frames [][]byte) error {
	if err := check(f, frames); err != nil {
		return &OpError{Op: "replay", Flow: f, Err: err}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	err := ErrClosed
	if !g.closed {
		err = g.wire.deliver(f, frames)
	}
	if err != nil {
		return &OpError{Op: "replay", Flow: f, Err: err}
	}
	return nil
}

func check(f tcprepair.Flow, frames [][]byte) error {
	for _, frame := range frames {
		if of, ok := gate.FlowOf(frame); !ok || of != f {
			return gate.ErrFrame
		}
	}
	return nil
}
