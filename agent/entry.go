// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
)

// presence keeps new connections from a server that is draining.
func (e *engine) presence(in *incoming, m *wire.Presence) {
	if e.absent[in.name] != m.Draining {
		e.absent[in.name] = m.Draining
		e.setServices()
	}
}

// setServices writes the services that this host is the entry of into the gate.
func (e *engine) setServices() {
	for _, s := range e.cfg.Services {
		if s.Entry != e.cfg.Host {
			continue
		}
		var nodes []gate.Node
		for _, name := range s.Servers {
			if e.absent[name] || name == e.cfg.Host && e.draining {
				continue
			}
			if n, ok := e.cfg.Node(name); ok {
				nodes = append(nodes, n)
			}
		}
		for _, a := range s.Addresses {
			if err := e.gate.SetService(a, nodes); err != nil {
				e.log.Error("cannot set the service's servers", "service", s.Name, "address", a, "error", err)
			}
		}
	}
}
