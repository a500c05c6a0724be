// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
)

// travelling is a session as load shedding sees it.
type travelling struct {
	id session.ID
	at gate.Node // its server
	// signal is the connection with which it moves, weight the number of its flows.
	signal session.Key
	weight float64
	// to are the hosts that it can move to; none when it cannot.
	to []uint32
	// since is when it came to its server; zero when it began there.
	since time.Time
}

// identity is a session's number: one that comes back is another.
func (c *travelling) identity() uint64 {
	b := binary.BigEndian.AppendUint64(nil, uint64(c.id))
	if !c.since.IsZero() {
		b = binary.BigEndian.AppendUint64(b, uint64(c.since.UnixNano()))
	}
	return numberOf(b)
}

// eachBatch is how many sessions are looked at before packets get their turn.
const eachBatch = 256

// each calls visit for every session.
func (s *sessions) each(now time.Time, visit func(travelling)) {
	var found []session.Session
	var seen []travelling
	for at := session.Cursor(0); ; {
		seen = seen[:0]
		s.mu.Lock()
		found, at = s.table.Scan(at, eachBatch, found[:0])
		for _, v := range found {
			seen = append(seen, s.travelling(now, v))
		}
		s.mu.Unlock()
		for _, c := range seen {
			visit(c)
		}
		if at == 0 {
			return
		}
	}
}

// travelling says what moving a session would mean.
func (s *sessions) travelling(now time.Time, v session.Session) travelling {
	c := travelling{id: v.ID, at: gate.Node(v.Server), weight: float64(v.Signalling + v.Media), since: s.arrived[v.ID]}
	s.flows = s.table.Flows(now, v.ID, s.flows[:0])
	for _, f := range s.flows {
		if f.Identity == session.Signalling && f.Key.Protocol == unix.IPPROTO_TCP {
			c.signal = f.Key
		}
	}
	of := s.d.live.Load().sessions[endpoint{unix.IPPROTO_TCP, c.signal.Server}]
	if of != nil && of.linked() && of.pool.has(c.at) && s.departures[v.ID] == nil && s.alone(now, v.ID, c.signal) {
		c.to = of.pool.nodes
	}
	return c
}

// has reports whether a node is of the pool.
func (p *pool) has(n gate.Node) bool {
	for _, m := range p.members {
		if m.host.node == n {
			return true
		}
	}
	return false
}
