// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// This file is the entry's part: who owns a flow stands in the gate's table, which is also what sends its packets on, so
// that ownership and path cannot differ; what may change stands in the ledger.

// owner returns who owns a flow.
func (e *engine) owner(f tcprepair.Flow) migration.Owner {
	r, err := e.gate.Route(f)
	if err != nil {
		if !errors.Is(err, gate.ErrNoFlow) {
			e.log.Error("cannot read the flow table", "flow", f, "error", err)
		}
		return migration.Owner{Unknown: true}
	}
	if !r.Entry() { // only a hold
		return migration.Owner{Unknown: true}
	}
	return migration.Owner{Host: e.cfg.hostOf(r.Node), Epoch: r.Epoch}
}

// entryOf returns the service that a flow's address belongs to, if this host is its entry.
func (e *engine) entryOf(f tcprepair.Flow) (ServiceConfig, bool) {
	for _, s := range e.cfg.Services {
		if s.Entry != e.cfg.Host {
			continue
		}
		for _, a := range s.Addresses {
			if a == f.Local {
				return s, true
			}
		}
	}
	return ServiceConfig{}, false
}

// grantLease is the entry's answer to a source, be it another host or this one.
func (e *engine) grantLease(id uint64, m *wire.Lease, from string) error {
	s, ok := e.entryOf(m.Flow)
	if !ok {
		return refuse("entry", wire.CodeNoService, "%v is not a service that %s is the entry of", m.Flow.Local, e.cfg.Host)
	}
	if !slices.Contains(s.Servers, m.To) {
		return refuse("entry", wire.CodeNoService, "%s is no server of %s", m.To, s.Name)
	}
	owner := e.owner(m.Flow)
	if owner.Unknown && slices.Contains(s.Servers, from) {
		// The table is younger than the connection, or has forgotten it as idle: the server knows better.
		n, _ := e.cfg.node(from)
		if _, err := e.gate.Adopt(m.Flow, m.Epoch, n); err != nil && !errors.Is(err, gate.ErrEpoch) {
			return refuse("entry", wire.CodeFailed, "%v", err)
		}
		owner = e.owner(m.Flow)
	}
	return e.ledger.Lease(time.Now(), migration.LeaseRequest{
		ID: id, Flow: m.Flow, Epoch: m.Epoch, From: from, To: m.To, TTL: m.TTL,
	}, owner)
}

func (e *engine) lease(in *incoming, id uint64, m *wire.Lease) {
	if err := e.grantLease(id, m, in.name); err != nil {
		in.send(id, &wire.LeaseRefused{Code: codeOf(err), Reason: reasonOf(err)})
		return
	}
	in.send(id, &wire.Leased{})
}

// commit makes host the owner if the lease allows it, and returns who is the owner then. It may be asked again.
func (e *engine) commit(id uint64, f tcprepair.Flow, epoch uint32, host string) migration.Owner {
	now := time.Now()
	from, err := e.ledger.Commit(now, id, f, host)
	if err != nil || from != epoch {
		return e.owner(f)
	}
	n, ok := e.cfg.node(host)
	if !ok {
		return e.owner(f)
	}
	if _, err := e.gate.Commit(f, from, n); err != nil {
		e.log.Warn("the flow changed under its lease", "flow", f, "to", host, "error", err)
	}
	e.ledger.End(now, id, f)
	return e.owner(f)
}

func (e *engine) reply(in *incoming, id uint64, f tcprepair.Flow, o migration.Owner) {
	in.send(id, &wire.Owner{Flow: f, Host: o.Host, Epoch: o.Epoch, Unknown: o.Unknown})
}

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
			if n, ok := e.cfg.node(name); ok {
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
