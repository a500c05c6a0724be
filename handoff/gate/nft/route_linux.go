// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Route tells who owns the flow; gate.ErrNoFlow if nothing is known of it and its service.
func (g *Gate) Route(flow tcprepair.Flow) (gate.RouteInfo, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r, _, err := g.ledger.find(flow)
	if s, ok := g.holds.strays[flow]; err != nil && ok {
		return gate.RouteInfo{Node: s.to}, nil
	}
	if err != nil {
		return r, &OpError{Op: "route", Flow: flow, Err: err}
	}
	return r, nil
}

// Commit gives the flow to a new owner if its epoch is from, which becomes from+1. Otherwise the error is gate.ErrEpoch, and the RouteInfo
// tells what holds.
func (g *Gate) Commit(flow tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	return g.decide("commit", flow, owner, false, func() (gate.RouteInfo, error) { return g.ledger.commit(flow, from, owner) })
}

// Grant is Commit for an owner that may not have the connection yet: a hold of the flow stays. Its packets go to the owner when that ends: by
// Settle, or by its deadline if this process is dead.
func (g *Gate) Grant(flow tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	return g.decide("grant", flow, owner, true, func() (gate.RouteInfo, error) { return g.ledger.commit(flow, from, owner) })
}

// Settle ends the hold of a flow that was granted with the epoch, and whose socket is gone. If that is not what holds now it is gate.ErrEpoch, and the
// RouteInfo tells what does. A packet may have passed the hold and not yet have come to the stack, which would answer it by RST: so the host
// stays mute for a moment longer.
func (g *Gate) Settle(flow tcprepair.Flow, epoch uint32, owner gate.Node) (r gate.RouteInfo, err error) {
	err = g.change("settle", flow, func() (err error) {
		if r, _, err = g.ledger.find(flow); err != nil {
			return err
		}
		if r.Epoch != epoch || r.Node != owner {
			return gate.ErrEpoch
		}
		var errs []error
		for _, s := range g.rules.holding(flow, g.holds.held[flow].directions&^gate.Egress) {
			errs = append(errs, g.without(s, encodeKey(flow)))
		}
		return errors.Join(errs...)
	}, func() {
		if g.holds.held[flow].directions&gate.Egress != 0 {
			g.mutes[flow] = time.Now().Add(muteTime)
		}
		delete(g.holds.held, flow)
	})
	return r, err
}

// CommitAll is Commit for many flows. Each stands for itself: some may fail.
func (g *Gate) CommitAll(changes ...gate.Change) []gate.Changed {
	answers := make([]gate.Changed, len(changes))
	for i, c := range changes {
		answers[i].Route, answers[i].Err = g.Commit(c.Flow, c.From, c.Owner)
	}
	return answers
}

// Adopt records an owner for a flow that has none; gate.ErrExists when there is one, and the RouteInfo then tells which.
func (g *Gate) Adopt(flow tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	if epoch == 0 {
		return gate.RouteInfo{}, &OpError{Op: "adopt", Flow: flow, Err: errors.New("epochs begin at 1")}
	}
	return g.decide("adopt", flow, owner, false, func() (gate.RouteInfo, error) { return g.ledger.adopt(flow, epoch, owner) })
}

func (g *Gate) decide(op string, flow tcprepair.Flow, owner gate.Node, keep bool, ask func() (gate.RouteInfo, error)) (gate.RouteInfo, error) {
	fail := func(r gate.RouteInfo, err error) (gate.RouteInfo, error) {
		return r, &OpError{Op: op, Flow: flow, Err: err}
	}
	if !flow.IsValid() || owner >= MaxNodes {
		return fail(gate.RouteInfo{}, fmt.Errorf("flow %v to node %d: want a flow, and a node below %d", flow, owner, MaxNodes))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fail(gate.RouteInfo{}, ErrClosed)
	}
	r, err := ask()
	if errors.Is(err, gate.ErrEpoch) {
		// Its ports may have been used again since.
		if err := g.sweep(); err != nil {
			return fail(r, err)
		}
		r, err = ask()
	}
	if err != nil {
		return fail(r, err)
	}
	if err := g.write(flow, r, keep); err != nil {
		return fail(gate.RouteInfo{}, err)
	}
	g.ledger.flows[flow] = r
	return r, nil
}

// toNode is the verdict of packets that go to a node.
func toNode(n gate.Node) *expr.Verdict {
	return &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainName(n)}
}

// ensureChain makes the chain of a node that nobody knows the way to yet: its packets must not reach this host's stack, which would answer RST.
func (g *Gate) ensureChain(n gate.Node) {
	if n == 0 || g.chains[n] {
		return
	}
	c := g.conn.AddChain(g.rules.node(chainName(n)))
	g.conn.AddRule(&nftables.Rule{Table: g.rules.table, Chain: c, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
}

// without takes a key out of a set.
func (g *Gate) without(s *nftables.Set, key []byte) error {
	return g.withoutElement(s, nftables.SetElement{Key: key})
}

// withoutElement takes an element out that may have lapsed: what is added can be deleted, and what is there can be added as it is.
func (g *Gate) withoutElement(s *nftables.Set, e nftables.SetElement) error {
	return errors.Join(
		g.conn.SetAddElements(s, []nftables.SetElement{e}),
		g.conn.SetDeleteElements(s, []nftables.SetElement{{Key: e.Key}}),
	)
}

// write changes the path of a flow, and ends its hold if it is another host's from now on and the hold is not to be kept, in one transaction.
func (g *Gate) write(flow tcprepair.Flow, r gate.RouteInfo, keep bool) error {
	v := g.rules.of(flow.Local.Addr().Is4())
	key := encodeKey(flow)
	g.ensureChain(r.Node)
	var errs []error
	if old, ok := g.ledger.flows[flow]; ok && old.Node != 0 {
		errs = append(errs, g.conn.SetDeleteElements(v.flows, []nftables.SetElement{{Key: key}}))
	}
	if r.Node != 0 {
		errs = append(errs,
			g.conn.SetAddElements(v.flows, []nftables.SetElement{{Key: key, VerdictData: toNode(r.Node), Comment: encodeOwner(r)}}),
			g.without(v.fresh, key),
			g.conn.SetAddElements(v.seen, []nftables.SetElement{{Key: key, Timeout: g.config.IdleTimeout}}),
		)
		if !keep {
			errs = append(errs, g.unhold(flow))
		}
	}
	if err := errors.Join(append(errs, g.flush())...); err != nil {
		return fmt.Errorf("change the table: %w", err)
	}
	if r.Node != 0 {
		g.chains[r.Node] = true
		if !keep {
			delete(g.holds.held, flow)
		}
	}
	return nil
}

// Forget removes flows, because their connections have ended. Unknown ones are no error.
func (g *Gate) Forget(flows ...tcprepair.Flow) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return &OpError{Op: "forget", Err: ErrClosed}
	}
	if err := g.remove(g.ledger.begun(flows)); err != nil {
		return &OpError{Op: "forget", Err: err}
	}
	return nil
}

// remove takes elements out of the kernel's maps.
func (g *Gate) remove(flows []tcprepair.Flow) error {
	for part := range slices.Chunk(flows, maxBatch) {
		for _, flow := range part {
			v := g.rules.of(flow.Local.Addr().Is4())
			if err := g.conn.SetDeleteElements(v.flows, []nftables.SetElement{{Key: encodeKey(flow)}}); err != nil {
				return err
			}
		}
		if err := g.flush(); err != nil {
			return fmt.Errorf("change the table: %w", err)
		}
	}
	return nil
}
