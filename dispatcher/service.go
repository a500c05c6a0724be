// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/dispatcher/route"
	"github.com/rehome-net/rehome/tcprepair"
)

// service is a configured service at work. What a reload can change stands behind routing.
type service struct {
	cfg    ServiceConfig
	mode   peek.Mode
	parser *peek.Parser
	// peeking counts connections whose first request is not known yet, active those that have been handed off.
	peeking, active atomic.Int64
	routing         atomic.Pointer[routing]
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
	s := &service{cfg: cfg, forget: forget}
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

// setRouting compiles the routes of cfg, which may be newer than the service's.
func (s *service) setRouting(cfg ServiceConfig, pools map[string]*pool) error {
	table, err := route.Compile(cfg.Rules())
	if err != nil {
		return fmt.Errorf("service %s: %w", cfg.Name, err)
	}
	s.routing.Store(&routing{table: table, pools: pools, fallback: pools[cfg.Default]})
	return nil
}

// peeks reports whether the first bytes matter. Where they do not, the server may be the one to speak first.
func (s *service) peeks() bool { return s.mode != peek.TCP || s.cfg.ProxyProtocol }

// deferred is how long the kernel may keep a new connection until its first bytes are there.
func (s *service) deferred() time.Duration {
	if !s.peeks() {
		return 0
	}
	return s.cfg.Limits.PeekTime
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

// hash returns what consistent hashing goes by.
func (p *pool) hash(f tcprepair.Flow, key *peek.Key) uint64 {
	source, name := p.cfg.HashBy()
	value, ok := "", false
	switch source {
	case HashHost:
		if value = key.Host; value == "" {
			value = key.SNI
		}
		ok = value != ""
	case HashPath:
		value, ok = key.Path, key.Path != ""
	case HashHeader:
		value, ok = key.Header(name)
	case HashCookie:
		value, ok = key.Cookie(name)
	}
	if !ok {
		return balance.KeyAddr(f.Remote.Addr())
	}
	return balance.Key(value)
}
