// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables"

	"github.com/rehome-net/rehome/handoff/gate"
)

// The names of the table's counters.
const (
	countHeld      = "held"
	countMuted     = "muted"
	countForwarded = "forwarded"
)

// Stats returns the counters, of packets since the table was made. What cannot be read is 0.
func (g *Gate) Stats() gate.Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := gate.Stats{Lapsed: g.lapsed, Flows: uint64(g.ledger.elsewhere()), Holds: uint64(len(g.holds.held))}
	if !g.closed {
		s.Held, s.Suppressed, s.Forwarded = g.count(countHeld), g.count(countMuted), g.count(countForwarded)
	}
	return s
}

func (g *Gate) count(name string) uint64 {
	o, err := g.conn.GetObject(&nftables.CounterObj{Table: g.rules.table, Name: name})
	if err != nil {
		return 0
	}
	switch c := o.(type) {
	case *nftables.CounterObj:
		return c.Packets
	default:
		return 0
	}
}
