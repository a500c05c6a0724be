// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// tokenEpoch is the epoch at which a token begins.
const tokenEpoch = 1

// maxGroupFlows bounds the connections of one process that moves.
const maxGroupFlows = 1 << 18

// Doors are who decides where new connections of services go. The entry calls them while it answers.
type Doors interface {
	// Shut lets new connections wait, for at most ttl.
	Shut(services []netip.AddrPort, ttl time.Duration) error
	// Open ends that.
	Open(services []netip.AddrPort)
	// Moved says that a server of the services is not at from any more, but at to. Open follows.
	Moved(services []netip.AddrPort, from, to string)
}

// A group is what moves with one tree of processes: connections, and the right to its services' new ones. A token stands for it in the flow
// table. The token's owner has the tree; the commit of the token, one compare-and-set, is that of all. The flows follow at
// once, each with a compare-and-set of its own: one whose connection has ended, or whose client has used its port again, stays where it is.
type group struct {
	token    tcprepair.Flow
	from, to string
	services []netip.AddrPort
	flows    map[tcprepair.Flow]uint32 // their epochs
	until    time.Time
	shut     bool
	// committed is set when all this is the target's. Until its time is over, the target can give it back.
	committed bool
}

// Guard makes the entry one that processes can move behind: it needs to say where new connections go.
func (e *Entry) Guard(d Doors) { e.doors = d }

// leaseGroup is Lease for a tree of processes.
func (e *Entry) leaseGroup(now time.Time, id uint64, m *wire.LeaseGroup, from string) error {
	if e.doors == nil {
		return wire.Refusef("entry", wire.CodeNoService, "this entry cannot move whole processes")
	}
	if len(m.Services) == 0 {
		return wire.Refusef("entry", wire.CodeNoService, "no service is named")
	}
	for _, s := range m.Services {
		is, source := e.dir.Serves(s, from)
		_, target := e.dir.Serves(s, m.To)
		switch {
		case !is:
			return wire.Refusef("entry", wire.CodeNoService, "%v is no service that this host is the entry of", s)
		case !source || !target:
			return wire.Refusef("entry", wire.CodeNoService, "%s and %s are not both servers of %v", from, m.To, s)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, g := range e.groups {
		if slices.ContainsFunc(m.Services, func(s netip.AddrPort) bool { return slices.Contains(g.services, s) }) && now.Before(g.until) && !g.committed {
			return wire.Refusef("entry", wire.CodeInUse, "a process of this service is being moved from %s to %s", g.from, g.to)
		}
	}
	n, _ := e.dir.Node(from)
	if _, err := e.flows.Adopt(m.Token, tokenEpoch, n); err != nil {
		return wire.Refusef("entry", wire.CodeFailed, "%v", err)
	}
	r := migration.LeaseRequest{ID: id, Flow: m.Token, Epoch: tokenEpoch, From: from, To: m.To, TTL: m.TTL}
	if err := e.ledger.Lease(now, r, e.Owner(m.Token)); err != nil {
		return wire.Refusef("entry", wire.CodeFailed, "%v", err)
	}
	if e.groups == nil {
		e.groups = make(map[uint64]*group)
	}
	e.groups[id] = &group{
		token: m.Token, from: from, to: m.To, services: m.Services, flows: make(map[tcprepair.Flow]uint32), until: now.Add(m.TTL),
	}
	return nil
}

// group returns the group of a lease that stands, for its source.
func (e *Entry) group(now time.Time, id uint64, from string) (*group, error) {
	g := e.groups[id]
	if g == nil || g.from != from || g.committed || !now.Before(g.until) {
		return nil, wire.Refusef("entry", wire.CodeTimeout, "no such lease")
	}
	return g, nil
}

// shutGroup lets new connections of the group's services wait.
func (e *Entry) shutGroup(now time.Time, id uint64, from string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	g, err := e.group(now, id, from)
	if err != nil {
		return err
	}
	if err := e.doors.Shut(g.services, g.until.Sub(now)); err != nil {
		return wire.Refusef("entry", wire.CodeFailed, "%v", err)
	}
	g.shut = true
	return nil
}

// include adds connections to a group.
func (e *Entry) include(now time.Time, id uint64, m *wire.FlowSet, from string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	g, err := e.group(now, id, from)
	if err != nil {
		return err
	}
	n, _ := e.dir.Node(from)
	for _, f := range m.Flows {
		if !slices.Contains(g.services, f.Local) {
			return wire.Refusef("entry", wire.CodeNoService, "%v is not of the services that this move is of", f)
		}
		owner := e.Owner(f)
		if owner.Unknown {
			// The table is younger than the connection, or has forgotten it as idle: the server knows better.
			if _, err := e.flows.Adopt(f, tokenEpoch, n); err != nil {
				return wire.Refusef("entry", wire.CodeFailed, "%v", err)
			}
			owner = e.Owner(f)
		}
		if owner.Host != from {
			return wire.Refusef("entry", wire.CodeEpoch, "%v is %s's", f, owner.Host)
		}
		g.flows[f] = owner.Epoch
	}
	if len(g.flows) > maxGroupFlows {
		return wire.Refusef("entry", wire.CodeBusy, "more than %d connections", maxGroupFlows)
	}
	return nil
}

// commitGroup lets everything follow its token. e.mu is held.
func (e *Entry) commitGroup(id uint64, n gate.Node) {
	g := e.groups[id]
	if g == nil {
		return
	}
	g.follow(e, n)
	e.doors.Moved(g.services, g.from, g.to)
	g.committed = true
	e.open(g)
}

// follow gives the connections to a host, and makes their epochs those of after it. A connection that is not what it was is left out from then on.
func (g *group) follow(e *Entry, n gate.Node) {
	for f, epoch := range g.flows {
		if _, err := e.flows.Commit(f, epoch, n); err != nil {
			e.log.Debug("a connection has ended during the move of its process", "flow", f, "error", err)
			delete(g.flows, f)
			continue
		}
		g.flows[f] = epoch + 1
	}
}

// abortGroup ends the group of a lease that was aborted for host, its source or its target. When the group is the target's already, only the target
// can say so: what it was given did not come to life there, and is the source's again. e.mu is held.
func (e *Entry) abortGroup(id uint64, f tcprepair.Flow, host string) {
	g := e.groups[id]
	switch {
	case g == nil || g.token != f:
	case !g.committed && (g.from == host || g.to == host):
		e.endGroup(id)
	case g.committed && g.to == host:
		n, ok := e.dir.Node(g.from)
		if !ok {
			return
		}
		if _, err := e.flows.Commit(f, tokenEpoch+1, n); err != nil {
			e.log.Warn("a process cannot be given back", "to", g.from, "error", err)
			return
		}
		g.follow(e, n)
		e.doors.Moved(g.services, g.to, g.from)
		e.endGroup(id)
	}
}

// open lets the new connections of a group's services go on. e.mu is held.
func (e *Entry) open(g *group) {
	if g.shut {
		g.shut = false
		e.doors.Open(g.services)
	}
}

// endGroup forgets a group; its services' new connections go on. e.mu is held.
func (e *Entry) endGroup(id uint64) {
	g := e.groups[id]
	if g == nil {
		return
	}
	delete(e.groups, id)
	e.open(g)
}

// Lost ends the moves of processes whose source is gone: without its agent the tree goes on there, and new connections with it. A commit
// that comes later is refused.
func (e *Entry) Lost(now time.Time, source string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, g := range e.groups {
		if g.from == source && !g.committed {
			e.ledger.Abort(now, id, g.token, source)
			e.endGroup(id)
		}
	}
}

// sweepGroups ends the groups whose lease is over. e.mu is held.
func (e *Entry) sweepGroups(now time.Time) {
	for id, g := range e.groups {
		if !now.Before(g.until) {
			e.endGroup(id)
		}
	}
}
