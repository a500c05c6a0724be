// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/wire"
)

// presence keeps new connections from a server that is draining.
func (e *engine) presence(in *incoming, m *wire.Presence) {
	idle := make(map[string]bool, len(m.Idle))
	for _, s := range m.Idle {
		idle[s] = true
	}
	was, known := e.idle[in.name]
	changed := e.absent[in.name] != m.Draining || e.hasProcesses() && (!known || !maps.Equal(was, idle))
	e.absent[in.name], e.idle[in.name] = m.Draining, idle
	if changed {
		e.setServices()
	}
}

// awaitsWord reports whether a service's servers had better stay what a former agent has left in a pinned table: none is known of where its process
// is, and not all have said something yet.
func (e *engine) awaitsWord(s ServiceConfig, nodes []gate.Node) bool {
	return s.Process && len(nodes) == 0 && slices.ContainsFunc(s.Servers, func(host string) bool {
		_, known := e.idle[host]
		if host == e.cfg.Host {
			_, known = e.listening[s.Name]
		}
		return !known
	})
}

// hasProcesses reports whether a service of the configuration is a process.
func (e *engine) hasProcesses() bool {
	return slices.ContainsFunc(e.cfg.Services, func(s ServiceConfig) bool { return s.Process })
}

// isIdle reports whether a service that is a process has none on a host, as far as this entry knows.
func (e *engine) isIdle(host, service string) bool {
	if host == e.cfg.Host {
		return !e.listening[service]
	}
	idle, known := e.idle[host]
	return !known || idle[service]
}

// Shut implements entry.Doors.
func (e *engine) Shut(services []netip.AddrPort, ttl time.Duration) error {
	for i, a := range services {
		if err := e.gate.Shut(a, ttl); err != nil {
			e.Open(services[:i])
			return err
		}
	}
	return nil
}

// Open implements entry.Doors.
func (e *engine) Open(services []netip.AddrPort) {
	for _, a := range services {
		if _, err := e.gate.Open(a); err != nil {
			e.log.Error("cannot let new connections go on", "address", a, "error", err)
		}
	}
}

// Moved implements entry.Doors. It comes before the hosts' own word.
func (e *engine) Moved(services []netip.AddrPort, from, to string) {
	for _, s := range e.cfg.Services {
		if !s.Process || !slices.ContainsFunc(s.Addresses, func(a netip.AddrPort) bool { return slices.Contains(services, a) }) {
			continue
		}
		e.setIdle(from, s.Name, true)
		e.setIdle(to, s.Name, false)
	}
	e.setServices()
}

func (e *engine) setIdle(host, service string, idle bool) {
	if host == e.cfg.Host {
		e.listening[service] = !idle
		return
	}
	if e.idle[host] == nil {
		e.idle[host] = make(map[string]bool)
	}
	e.idle[host][service] = idle
}

// watchPeers keeps the gate's table of hosts up to date.
func (e *engine) watchPeers(ctx context.Context) error {
	list := func() ([]neighbour.Host, <-chan struct{}) {
		now := e.shared.Load()
		var hosts []neighbour.Host
		for _, p := range now.cfg.Peers {
			hosts = append(hosts, p.Host())
		}
		return hosts, now.replaced
	}
	return neighbour.Follow(ctx, e.gate, list, func(h neighbour.Host, mac net.HardwareAddr) {
		e.post(func(e *engine) {
			if p := e.peers[h.Name]; p != nil {
				p.mac = mac.String()
			}
		})
	}, e.log)
}

// setServices writes the services that this host is the entry of into the gate.
func (e *engine) setServices() {
	for _, s := range e.cfg.Services {
		if s.Entry != e.cfg.Host {
			continue
		}
		nodes := e.serversOf(&e.cfg, s)
		if e.awaitsWord(s, nodes) {
			continue
		}
		for _, a := range s.Addresses {
			if err := e.gate.SetService(a, nodes); err != nil {
				e.log.Error("cannot set the service's servers", "service", s.Name, "address", a, "error", err)
			}
		}
	}
}

// serversOf returns those that a service's new connections go to.
func (e *engine) serversOf(cfg *Config, s ServiceConfig) (nodes []gate.Node) {
	for _, name := range s.Servers {
		if e.absent[name] || name == cfg.Host && e.draining {
			continue
		}
		if s.Process && e.isIdle(name, s.Name) {
			continue
		}
		if n, ok := cfg.Node(name); ok {
			nodes = append(nodes, n)
		}
	}
	return nodes
}
