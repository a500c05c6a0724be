// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
)

// errNoService means that a packet came for a service that has left the configuration.
var errNoService = errors.New("no such service")

// errNoServer means that a pool has no server for a session.
var errNoServer = errors.New("no server takes the session")

// decide sends on a packet that the path did not know the way of, or that is signalling.
func (s *sessions) decide(p packet) {
	now := time.Now()
	k := keyOf(p.Protocol, p.Flow)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.keep(now, k, &p) {
		s.pass(now, k, &p)
	}
}

// pass is decide for a packet that need not wait.
func (s *sessions) pass(now time.Time, k session.Key, p *packet) {
	v := s.d.live.Load().sessions[endpoint{p.Protocol, p.Flow.Local}]
	to := s.owner(now, k, p)
	if p.Reason == forward.Undecided {
		var err error
		if to, err = s.place(now, v, k, p); err != nil {
			s.d.count.unplaced.Inc()
			s.d.log.Debug("a session is not served", "flow", k, "error", err)
			if err := s.path.Drop(k.Protocol, p.Flow); err != nil { // its next packet asks again
				s.d.log.Warn("cannot forget a flow", "flow", k, "error", err)
			}
			return
		}
	}
	if v == nil && len(s.departures)+len(s.returning) == 0 {
		s.straighten(k, p)
	}
	s.listen(now, v, k, p)
	if err := s.path.Send(*p, to); err != nil {
		s.d.log.Warn("cannot send a packet on", "flow", k, "error", err)
	}
	s.returns(now, k, p)
}

// place finds the server of a flow's first packet, and tells the path.
func (s *sessions) place(now time.Time, v *sessionService, k session.Key, p *packet) (gate.Node, error) {
	f := p.Flow
	if r, err := s.path.Locate(k.Protocol, f); err == nil && r.Node != 0 {
		return r.Node, nil // a packet before this one has decided
	}
	if v == nil {
		return 0, errNoService
	}
	if k.Protocol == unix.IPPROTO_TCP {
		s.forget(now, k) // the port is used again, and what the path has is the new flow
	}
	to, err := s.server(now, v, k, p)
	if err != nil {
		return 0, err
	}
	r, err := s.path.Assign(k.Protocol, f, to, v.cfg.Mode.signals())
	if errors.Is(err, gate.ErrExists) {
		return r.Node, nil
	}
	if err != nil {
		s.forget(now, k) // it would count for its server, and meet the client's next try
		return 0, err
	}
	return to, nil
}

// server finds the session that a new flow belongs to, or opens one.
func (s *sessions) server(now time.Time, v *sessionService, k session.Key, p *packet) (gate.Node, error) {
	if f, actions, ok := s.table.Touch(now, k, s.actions[:0]); ok {
		s.warn(s.perform(now, actions))
		return gate.Node(f.Server), nil
	}
	if id, ok := s.named(v, k, p); ok {
		actions, err := s.table.Join(now, id, k, s.actions[:0])
		s.warn(s.perform(now, actions))
		if f, ok := s.table.Lookup(now, k); err == nil && ok {
			return gate.Node(f.Server), nil
		}
	}
	var node gate.Node
	if v.cfg.sticksToClient() {
		node = s.stick(v, k)
	}
	if node == 0 {
		m := v.pool.member(now, balance.Visit{Key: balance.KeyAddr(k.Client.Addr())}, nil)
		if m == nil {
			return 0, errNoServer
		}
		node = m.host.node
	}
	return node, s.open(now, k, node)
}

// stick returns the server of the client's newest session, first among those of the same service; 0: none that serves it.
func (s *sessions) stick(v *sessionService, k session.Key) gate.Node {
	serves := func(n session.Server, _ session.Key) bool { return v.pool.serves(gate.Node(n)) }
	same := func(n session.Server, has session.Key) bool {
		return has.Server == k.Server && has.Protocol == k.Protocol && serves(n, has)
	}
	to, ok := s.table.ServerWith(k.Client.Addr(), same)
	if !ok {
		to, _ = s.table.ServerWith(k.Client.Addr(), serves)
	}
	return gate.Node(to)
}

// connectionTimeout is after which silence signalling over TCP is inactive. Agents tell when such a connection ends.
const connectionTimeout = 15 * time.Minute

// open begins a session with its first flow.
func (s *sessions) open(now time.Time, k session.Key, node gate.Node) error {
	terms := session.Terms{Server: session.Server(node)}
	if k.Protocol == unix.IPPROTO_TCP {
		terms.Timeouts.Signalling = connectionTimeout
	}
	_, actions, err := s.table.Open(now, k, terms, s.actions[:0])
	s.warn(s.perform(now, actions))
	if err != nil {
		return err
	}
	s.d.count.sessions.Inc()
	if b := s.d.host(node); b != nil {
		b.active.Add(1)
	}
	return nil
}

// serves reports whether a node is of the pool, and takes sessions.
func (p *pool) serves(n gate.Node) bool {
	for _, m := range p.members {
		if m.host.node == n {
			return !m.view(nil).Down
		}
	}
	return false
}

// host returns the backend with that number, or nil.
func (d *Dispatcher) host(n gate.Node) *backend {
	for _, b := range d.live.Load().hosts {
		if b.node == n {
			return b
		}
	}
	return nil
}
