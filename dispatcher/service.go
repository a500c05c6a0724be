// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/dispatcher/route"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// service is a configured service at work. It does not change; a reload makes another, which counts on.
type service struct {
	cfg    ServiceConfig
	mode   peek.Mode
	parser *peek.Parser
	// peeking counts connections whose first request is not known yet, active those that have been handed off or are being.
	peeking, active *atomic.Int64
	// routing is shared with the service that this one replaces, so that who is being peeked at goes the newest way.
	routing *atomic.Pointer[routing]
	// next is what the plan to which the service belongs will store in routing.
	next *routing
	// forget removes a flow from the packet path's table.
	forget func(tcprepair.Flow)
}

// routing is where a service's connections go. It does not change.
type routing struct {
	table    *route.Table
	pools    map[string]*pool
	fallback *pool
}

// newService returns a service without routing.
func newService(cfg ServiceConfig, forget func(tcprepair.Flow)) (*service, error) {
	s := &service{cfg: cfg, forget: forget, peeking: new(atomic.Int64), active: new(atomic.Int64), routing: new(atomic.Pointer[routing])}
	switch cfg.Mode {
	case ModeHTTP:
		s.mode = peek.HTTP
	case ModeTLS:
		s.mode = peek.TLS
	case ModeH2:
		s.mode = peek.HTTP2
	default:
		s.mode = peek.TCP
	}
	var err error
	s.parser, err = peek.New(peek.Config{
		Mode: s.mode, ProxyProtocol: cfg.ProxyProtocol, Limits: peek.Limits{Bytes: cfg.Limits.PeekBytes},
	})
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", cfg.Name, err)
	}
	return s, nil
}

// inherit goes on with the counts of the service that this one replaces, and with those who are being peeked at there.
func (s *service) inherit(old *service) {
	s.peeking, s.active = old.peeking, old.active
	if s.mode == old.mode { // what another mode's parsers find does not fit these routes
		s.routing = old.routing
	}
}

// compile makes the routing that take puts into effect.
func (s *service) compile(pools map[string]*pool) error {
	table, err := route.Compile(s.cfg.Rules())
	if err != nil {
		return fmt.Errorf("service %s: %w", s.cfg.Name, err)
	}
	s.next = &routing{table: table, pools: pools, fallback: pools[s.cfg.Default]}
	return nil
}

// take puts the compiled routing into effect.
func (s *service) take() { s.routing.Store(s.next) }

// peeks reports whether the first bytes matter. Where they do not, the server may be the one to speak first.
func (s *service) peeks() bool { return s.mode != peek.TCP || s.cfg.ProxyProtocol }

// deferred is how long the kernel may keep a new connection until its first bytes are there.
func (s *service) deferred() time.Duration {
	if !s.peeks() {
		return 0
	}
	return s.cfg.Limits.PeekTime
}

// reserve counts one connection more, unless the service has as many as it may. What does not become a backend's is to be taken off again
// (lower).
func (s *service) reserve() bool {
	if limit := int64(s.cfg.Limits.Connections); s.active.Add(1) > limit && limit > 0 {
		lower(s.active)
		return false
	}
	return true
}

// unmodifiedAt reports whether a backend serves it with an unmodified server.
func (s *service) unmodifiedAt(b *backend) bool {
	for _, p := range s.routing.Load().pools {
		if p.delivery == wire.DeliverUnmodified && s.leadsTo(p) && slices.ContainsFunc(p.members, func(m *member) bool { return m.host == b }) {
			return true
		}
	}
	return false
}

// leadsTo reports whether a connection can come to a pool.
func (s *service) leadsTo(p *pool) bool {
	return s.cfg.Default == p.cfg.Name || slices.ContainsFunc(s.cfg.Routes, func(r RouteConfig) bool { return r.Pool == p.cfg.Name })
}

func (s *service) hasDefault() bool { return s.routing.Load().fallback != nil }

// ended forgets a flow that was never handed off.
func (s *service) ended(f tcprepair.Flow) { s.forget(f) }

// pool returns where a connection with that key goes, nil when no route fits.
func (s *service) pool(key *peek.Key) *pool {
	r := s.routing.Load()
	name, ok := r.table.Lookup(route.Request{
		Host: key.Host, Path: key.Path, SNI: key.SNI, ALPN: key.ALPN, Header: key.Header, Cookie: key.Cookie,
	})
	if !ok {
		return r.fallback
	}
	return r.pools[name]
}
