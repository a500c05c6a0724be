// SPDX-License-Identifier: Apache-2.0

// Package entry is the entry's part in a migration: the host that answers for a virtual address says who owns each of its flows.
// Who owns a flow stands in the packet path's flow table, which is also what sends its packets on, so that ownership and path cannot
// differ; who may become the owner stands in a ledger of leases. An agent can be an entry, and a dispatcher always is one.
package entry

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// Flows is the packet path's table of owners: a gate.Gate, or a dispatcher's forwarder.
type Flows interface {
	Route(tcprepair.Flow) (gate.RouteInfo, error)
	Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error)
	Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error)
}

// Directory knows the hosts and what they serve. Its answers may change with the configuration.
type Directory interface {
	// Node returns the number under which the packet path knows a host.
	Node(host string) (gate.Node, bool)
	// HostOf returns the name of a node.
	HostOf(gate.Node) string
	// Serves reports whether this host is the entry of the service at an address, and host a server of it.
	Serves(service netip.AddrPort, host string) (entry, server bool)
}

// Entry decides who owns flows. Its methods are safe for concurrent use.
type Entry struct {
	flows Flows
	dir   Directory
	log   *slog.Logger

	doors Doors // nil where processes cannot move

	mu     sync.Mutex
	ledger migration.Ledger
	groups map[uint64]*group
}

// New returns an entry without leases.
func New(flows Flows, dir Directory, log *slog.Logger) *Entry {
	return &Entry{flows: flows, dir: dir, log: log}
}

// Owner returns who owns a flow.
func (e *Entry) Owner(f tcprepair.Flow) migration.Owner {
	r, err := e.flows.Route(f)
	if err != nil {
		if !errors.Is(err, gate.ErrNoFlow) {
			e.log.Error("cannot read the flow table", "flow", f, "error", err)
		}
		return migration.Owner{Unknown: true}
	}
	if !r.Entry() { // only a hold
		return migration.Owner{Unknown: true}
	}
	return migration.Owner{Host: e.dir.HostOf(r.Node), Epoch: r.Epoch}
}

// Lease is the answer to a source, be it another host or this one: nil, or a *wire.RefusedError.
func (e *Entry) Lease(now time.Time, id uint64, m *wire.Lease, from string) error {
	is, serves := e.dir.Serves(m.Flow.Local, m.To)
	if !is {
		return wire.Refusef("entry", wire.CodeNoService, "%v is no service that this host is the entry of", m.Flow.Local)
	}
	if !serves {
		return wire.Refusef("entry", wire.CodeNoService, "%s is no server of %v", m.To, m.Flow.Local)
	}
	owner := e.Owner(m.Flow)
	if _, server := e.dir.Serves(m.Flow.Local, from); owner.Unknown && server {
		// The table is younger than the connection, or has forgotten it as idle: the server knows better.
		n, _ := e.dir.Node(from)
		if _, err := e.flows.Adopt(m.Flow, m.Epoch, n); err != nil && !errors.Is(err, gate.ErrEpoch) {
			return wire.Refusef("entry", wire.CodeFailed, "%v", err)
		}
		owner = e.Owner(m.Flow)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.ledger.Lease(now, migration.LeaseRequest{ID: id, Flow: m.Flow, Epoch: m.Epoch, From: from, To: m.To, TTL: m.TTL}, owner)
	switch {
	case errors.Is(err, migration.ErrNotOwner):
		return wire.Refusef("entry", wire.CodeEpoch, "%v", err)
	case errors.Is(err, migration.ErrLeased):
		return wire.Refusef("entry", wire.CodeInUse, "%v", err)
	case err != nil:
		return wire.Refusef("entry", wire.CodeFailed, "%v", err)
	}
	return nil
}

// Commit makes host the owner if the lease id allows it, and returns who is the owner then. It may be asked again.
func (e *Entry) Commit(now time.Time, id uint64, f tcprepair.Flow, epoch uint32, host string) migration.Owner {
	e.mu.Lock()
	defer e.mu.Unlock()
	from, err := e.ledger.Commit(now, id, f, host)
	if err != nil || from != epoch {
		return e.Owner(f)
	}
	n, ok := e.dir.Node(host)
	if !ok {
		return e.Owner(f)
	}
	r, err := e.flows.Commit(f, from, n)
	e.ledger.End(now, id, f)
	if err != nil {
		e.log.Warn("the flow changed under its lease", "flow", f, "to", host, "error", err)
		return e.Owner(f)
	}
	e.commitGroup(id, n)
	return migration.Owner{Host: e.dir.HostOf(r.Node), Epoch: r.Epoch}
}

// Abort ends the lease id for host, and returns who owns the flow, which nobody can change under that lease any more.
func (e *Entry) Abort(now time.Time, id uint64, f tcprepair.Flow, host string) migration.Owner {
	e.mu.Lock()
	e.ledger.Abort(now, id, f, host)
	e.abortGroup(id, f, host)
	e.mu.Unlock()
	return e.Owner(f)
}

// Sweep drops the leases whose time is over.
func (e *Entry) Sweep(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ledger.Sweep(now)
	e.sweepGroups(now)
}

// Answer carries out a request of another host's agent that concerns the entry, and returns the answer; false when the message is no
// such request.
func (e *Entry) Answer(now time.Time, id uint64, m wire.Message, from string) (wire.Message, bool) {
	switch m := m.(type) {
	case *wire.Lease:
		return leaseFrame(e.Lease(now, id, m, from)), true
	case *wire.LeaseGroup:
		return leaseFrame(e.leaseGroup(now, id, m, from)), true
	case *wire.Shut:
		return leaseFrame(e.shutGroup(now, id, from)), true
	case *wire.FlowSet:
		return leaseFrame(e.include(now, id, m, from)), true
	case *wire.Commit:
		return ownerFrame(m.Flow, e.Commit(now, id, m.Flow, m.Epoch, from)), true
	case *wire.Abort:
		return ownerFrame(m.Flow, e.Abort(now, id, m.Flow, from)), true
	case *wire.Query:
		return ownerFrame(m.Flow, e.Owner(m.Flow)), true
	}
	return nil, false
}

func leaseFrame(err error) wire.Message {
	var refused *wire.RefusedError
	switch {
	case err == nil:
		return &wire.Leased{}
	case errors.As(err, &refused):
		return &wire.LeaseRefused{Code: refused.Code, Reason: refused.Reason}
	}
	return &wire.LeaseRefused{Code: wire.CodeFailed, Reason: fmt.Sprint(err)}
}

func ownerFrame(f tcprepair.Flow, o migration.Owner) *wire.Owner {
	return &wire.Owner{Flow: f, Host: o.Host, Epoch: o.Epoch, Unknown: o.Unknown}
}
