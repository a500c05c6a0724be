// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"net/netip"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/wire"
)

// presence keeps new connections from a server that is draining.
func (e *engine) presence(in *incoming, m *wire.Presence) {
	if e.absent[in.name] != m.Draining {
		e.absent[in.name] = m.Draining
		e.setServices()
	}
}

// neighbour returns the peer as the packet path knows it. Its address has been validated.
func (p PeerConfig) neighbour() neighbour.Host {
	at, _ := netip.ParseAddrPort(p.Address)
	return neighbour.Host{Name: p.Name, Addr: at.Addr(), MAC: p.MAC, Node: gate.Node(p.ID)}
}

// watchPeers keeps the gate's table of hosts up to date.
func (e *engine) watchPeers(ctx context.Context) error {
	list := func() ([]neighbour.Host, <-chan struct{}) {
		now := e.shared.Load()
		var hosts []neighbour.Host
		for _, p := range now.cfg.Peers {
			hosts = append(hosts, p.neighbour())
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
		if n, ok := cfg.Node(name); ok {
			nodes = append(nodes, n)
		}
	}
	return nodes
}
