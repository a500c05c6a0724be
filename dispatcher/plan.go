// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rehome-net/rehome/dispatcher/health"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
)

// plan is a configuration at work. It does not change but for its backends' states and what operators set; a reload makes another,
// and all that is read of it at once is read of one plan.
type plan struct {
	cfg      Config
	loaded   time.Time
	peers    map[string]PeerConfig
	backends map[string]*backend
	pools    map[string]*pool
	services []*service
	// at are the services by their addresses, sessions those whose flows belong to sessions.
	at       map[netip.AddrPort]*service
	sessions map[endpoint]*sessionService
	// nodes are the hosts that the numbers in the flow table mean, or have meant: see numbered.
	nodes map[gate.Node]string
	// targets are what the pools' checks ask.
	targets []health.Target
	// hosts are the backends, and those of former plans that connections may still be handed to.
	hosts []*backend
}

// place says whose address it is.
type place struct {
	service *service
	at      int // of the service's addresses
}

// compile makes a plan of a validated configuration. old is the one that it shall replace, nil at the start; it stays as it is.
func (d *Dispatcher) compile(cfg Config, old *plan) (*plan, error) {
	if old == nil {
		old = &plan{}
	}
	p := &plan{
		cfg: cfg, loaded: time.Now(), peers: make(map[string]PeerConfig, len(cfg.Peers)),
		backends: make(map[string]*backend, len(cfg.Peers)), pools: make(map[string]*pool, len(cfg.Pools)),
		at: make(map[netip.AddrPort]*service), sessions: make(map[endpoint]*sessionService),
	}
	var err error
	var peers []PeerConfig
	if peers, p.nodes, err = numbered(old.nodes, cfg.Peers); err != nil {
		return nil, err
	}
	for _, c := range peers {
		b := old.backends[c.Name]
		if b == nil || old.peers[c.Name] != c {
			was := b
			b = newBackend(c.Name, c.Address, gate.Node(c.ID), d.self, d.flush, d.log)
			b.socketless, b.management = d.socketless, d.management
			if was != nil {
				b.succeed(was)
			}
		}
		p.peers[c.Name], p.backends[c.Name] = c, b
		p.hosts = append(p.hosts, b)
	}
	for _, c := range cfg.Pools {
		made, err := newPool(c, p.backends)
		if err != nil {
			return nil, err
		}
		made.examine(d.checks.checker)
		if was := old.pools[c.Name]; was != nil {
			made.inherit(was)
		}
		p.pools[c.Name] = made
	}
	if p.targets, err = d.checks.targets(p); err != nil {
		return nil, err
	}
	for _, c := range cfg.Services {
		if c.Mode.sessions() {
			for _, protocol := range c.Mode.protocols() {
				for _, a := range c.Addresses {
					p.sessions[endpoint{protocol, a}] = &sessionService{cfg: c, pool: p.pools[c.Default]}
				}
			}
			continue
		}
		s, err := newService(c, d.forget)
		if err == nil {
			err = s.compile(p.pools)
		}
		if err != nil {
			return nil, err
		}
		if was := old.service(c.Name); was != nil {
			s.inherit(was)
		}
		p.services = append(p.services, s)
		for _, a := range c.Addresses {
			p.at[a] = s
		}
		for _, o := range p.pools {
			if o.delivery == wire.DeliverUnmodified && s.leadsTo(o) {
				for _, m := range o.members {
					m.injected = true
				}
			}
		}
	}
	for _, b := range p.backends {
		if old.backends[b.name] != b { // others are told when the plan is in effect
			b.injects.Store(p.injects(b))
		}
	}
	return p, nil
}

// injects reports whether connections are handed to unmodified servers at a backend.
func (p *plan) injects(b *backend) bool {
	for _, o := range p.pools {
		if slices.ContainsFunc(o.members, func(m *member) bool { return m.host == b && m.injected }) {
			return true
		}
	}
	return false
}

// service returns the service of that name, or nil.
func (p *plan) service(name string) *service {
	i := slices.IndexFunc(p.services, func(s *service) bool { return s.cfg.Name == name })
	if i < 0 {
		return nil
	}
	return p.services[i]
}

// places returns all addresses at which connections are accepted.
func (p *plan) places() map[netip.AddrPort]place {
	all := make(map[netip.AddrPort]place)
	for _, s := range p.services {
		for i, a := range s.cfg.Addresses {
			all[a] = place{s, i}
		}
	}
	return all
}

// peekTime returns how long a connection may be looked at before it must go somewhere.
func (p *plan) peekTime() time.Duration {
	var longest time.Duration
	for _, s := range p.services {
		longest = max(longest, s.cfg.Limits.PeekTime)
	}
	return longest
}

// routes counts the routes of all services.
func (p *plan) routes() int {
	n := 0
	for _, s := range p.services {
		n += len(s.cfg.Routes)
	}
	return n
}

// RestartError means that a new configuration differs in what cannot be changed while the dispatcher runs.
type RestartError struct {
	// Keys are the configuration's.
	Keys []string
}

// Error implements error.
func (e *RestartError) Error() string {
	return fmt.Sprintf("%s: cannot be changed by a reload: restart the dispatcher, or put it back", strings.Join(e.Keys, ", "))
}

// needRestart says what of the difference between two configurations needs a restart.
func needRestart(old, cfg *Config) error {
	var keys []string
	for _, c := range []struct {
		key  string
		same bool
	}{
		{"host", old.Host == cfg.Host},
		{"interfaces", slices.Equal(old.Interfaces, cfg.Interfaces)},
		{"listen", old.Listen == cfg.Listen},
		{"control", old.Control == cfg.Control},
		{"metrics", old.Metrics == cfg.Metrics},
		{"pin", old.Pin == cfg.Pin},
		{"forward", old.Forward == cfg.Forward},
		{"tls", old.TLS == cfg.TLS},
		{"plaintext", old.Plaintext == cfg.Plaintext},
		{"workers", old.Workers == cfg.Workers},
		{"services.mode: the first of rtsp, sip, ftp or udp", old.hasSessions() || !cfg.hasSessions()},
		{"gateways", slices.Equal(old.Gateways, cfg.Gateways)},
		{"checks", reflect.DeepEqual(old.Checks, cfg.Checks)},
		{"reports", reflect.DeepEqual(old.Reports, cfg.Reports)},
		{"admission", old.Admission == cfg.Admission},
		{"forecast", old.Forecast == cfg.Forecast},
		{"shedding", old.Shedding == cfg.Shedding},
		{"sessions", old.Sessions == cfg.Sessions},
		{"services.socketless", old.socketless() || !cfg.socketless()},
	} {
		if !c.same {
			keys = append(keys, c.key)
		}
	}
	if len(keys) > 0 {
		return &RestartError{Keys: keys}
	}
	return nil
}
