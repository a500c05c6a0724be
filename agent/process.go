// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// tokenOf returns what stands for a process's move in the entry's flow table: addresses that no packet has (RFC 6666).
func tokenOf(id uint64) tcprepair.Flow {
	discard := netip.MustParseAddr("100::").As16()
	local := discard
	local[15] = 1
	binary.BigEndian.PutUint64(discard[8:], id)
	return tcprepair.NewFlow(netip.AddrPortFrom(netip.AddrFrom16(local), 1), netip.AddrPortFrom(netip.AddrFrom16(discard), 1))
}

// processTimes are the times of a process's move. The target waits longer for what was held: the tree first has to run.
func (e *engine) processTimes() migration.Config {
	t := e.times
	t.Limit = e.cfg.Process.Limit
	t.HeldWait = max(t.HeldWait, processHeldWait)
	return t.WithDefaults()
}

// processHeldWait is how long a restored tree may take to run, from the commit on, before packets are let go that came in the meantime.
const processHeldWait = 3 * time.Second

// Reasons why an agent does not move a process.
var (
	errNoService    = errors.New("the process listens at no address of a configured service: add it to services, with process: true")
	errTwoEntries   = errors.New("the process's services have different entries: one entry has to decide on all its connections")
	errOwnFlow      = errors.New("a connection that is not of its service is open: only connections of the service can move")
	errConnecting   = errors.New("it is just opening a connection")
	errHandshakes   = errors.New("new connections do not come to rest")
	errLostThere    = errors.New("the target could not let the process run, nor give it back: it is lost")
	errProcessMoves = errors.New("a process of this service is being moved already")
)

// ProcessRequest is what an operator wants moved as a whole.
type ProcessRequest struct {
	// PID is the first process of the tree, as this host numbers it; whoever listens for Service when 0.
	PID int
	// Service names the service whose process is meant when PID is 0.
	Service string
	// To is the host to move to; the service's only other server when empty.
	To string
	// Lazy lets it run at the target before its memory is there. Whatever fails then, until the memory has followed, takes the process with it.
	Lazy bool
}

// ProcessMoved tells how the move of a tree ended.
type ProcessMoved struct {
	Name string
	// PID is its first process here, NewPID that at the target.
	PID, NewPID int
	To          string
	// Outcome is one of Moved's.
	Outcome string
	Err     error
	// Freeze is the time from holding the first packet until the target's word that the tree runs there, or until it went on here. Dump
	// is the part of it until the image was at the target.
	Freeze, Dump, Total time.Duration
	Processes           int
	Connections         int
	Held                int
	ImageBytes          uint64
	// LazyBytes is the memory that followed it.
	LazyBytes uint64
}

// processMoves reports whether a process of a service is leaving, or coming.
func (e *engine) processMoves(s ServiceConfig) bool {
	ours := func(a netip.AddrPort) bool { return slices.Contains(s.Addresses, a) }
	for _, p := range e.processes {
		if slices.ContainsFunc(p.addresses, ours) {
			return true
		}
	}
	for _, t := range e.arrivals {
		if slices.ContainsFunc(t.offer.Services, ours) {
			return true
		}
	}
	return false
}

// arrivalOf returns the move that a tree has just come by; nil if it is over.
func (e *engine) arrivalOf(p *criu.Process) *processTarget {
	for _, t := range e.arrivals {
		if t.live && t.pid == p.PID {
			return t
		}
	}
	return nil
}

// processesUse reports whether the move of a process needs a peer.
func (e *engine) processesUse(host string) bool {
	for _, p := range e.processes {
		if p.target == host || p.entry == host {
			return true
		}
	}
	for _, t := range e.arrivals {
		if t.entry == host {
			return true
		}
	}
	for _, o := range e.orphans {
		if o.Entry == host {
			return true
		}
	}
	return false
}

// processesLost tells the moves that use a connection to a peer that it is gone.
func (e *engine) processesLost(host string, err error) {
	for _, p := range slices.Collect(maps.Values(e.processes)) {
		if p.target == host {
			p.step(migration.Event{Kind: migration.PeerLost, Err: err})
			p.memoryLost(err)
		}
		if p.entry == host {
			p.step(migration.Event{Kind: migration.EntryLost, Err: err})
		}
	}
	for _, t := range slices.Collect(maps.Values(e.arrivals)) {
		if t.entry != host {
			continue
		}
		if t.returning {
			t.gaveBack(migration.Owner{Unknown: true})
			continue
		}
		t.step(migration.Event{Kind: migration.EntryLost, Err: err})
	}
}

// arrivalsLost gives up what a source sends that is gone. A tree needs its source for longer than a connection does: a source whose agent
// is dead lets the tree go on, so that it must not run here.
func (e *engine) arrivalsLost(in *incoming, err error) {
	for _, t := range slices.Collect(maps.Values(e.arrivals)) {
		if t.from == in {
			t.lostSource(err)
		}
	}
	e.entry.Lost(time.Now(), in.name)
}

func (e *engine) tickProcesses(now time.Time) {
	e.tickOrphans(now)
	for _, p := range slices.Collect(maps.Values(e.processes)) {
		p.tick(now)
	}
	for _, t := range slices.Collect(maps.Values(e.arrivals)) {
		if t.machine == nil {
			continue
		}
		t.tickMemory(now)
		if d := t.machine.Deadline(); !d.IsZero() && !now.Before(d) {
			t.stepAt(now, migration.Event{Kind: migration.Tick})
		}
	}
}

// stopProcesses gives up what has not been transferred.
func (e *engine) stopProcesses() {
	for _, p := range slices.Collect(maps.Values(e.processes)) {
		if p.machine.State() < migration.SourceSent {
			p.step(migration.Event{Kind: migration.Canceled, Err: errStopping})
		}
	}
	for _, t := range slices.Collect(maps.Values(e.arrivals)) {
		if t.machine == nil || t.machine.State() < migration.TargetCommitting {
			t.cancel(errStopping)
		}
	}
}

// abortProcesses gives up the moves of processes.
func (e *engine) abortProcesses() int {
	for _, p := range slices.Collect(maps.Values(e.processes)) {
		p.step(migration.Event{Kind: migration.Canceled, Err: errAborted})
	}
	return len(e.processes)
}

// answerProcess handles an answer that concerns the move of a process, and reports whether it does.
func (e *engine) answerProcess(p *outgoing, f wire.Frame) bool {
	if t := e.arrivals[f.ID]; t != nil && t.entry == p.name {
		if m, ok := f.Message.(*wire.Owner); ok {
			if t.returning {
				t.gaveBack(ownerEvent(m).Owner)
			} else {
				t.step(ownerEvent(m))
			}
			return true
		}
	}
	if m, ok := f.Message.(*wire.Owner); ok && e.orphans[f.ID] != nil && e.orphans[f.ID].Entry == p.name {
		return e.orphanIs(f.ID, ownerEvent(m).Owner)
	}
	s := e.processes[f.ID]
	if s == nil {
		return false
	}
	fromTarget, fromEntry := s.target == p.name, s.entry == p.name
	switch m := f.Message.(type) {
	case *wire.Accept:
		switch {
		case !fromTarget:
		case s.lazy && !m.Lazy:
			s.toTarget(&wire.Cancel{Reason: errNotLazy.Error()})
			s.step(migration.Event{Kind: migration.Refused, Err: errNotLazy})
		default:
			s.aheadRoom = m.Ahead
			s.step(migration.Event{Kind: migration.Accepted})
		}
	case *wire.Fetch:
		if fromTarget {
			s.fetch(m)
		}
	case *wire.Refuse:
		if fromTarget {
			err := &wire.RefusedError{Who: p.name, Code: m.Code, Reason: m.Reason}
			s.step(migration.Event{Kind: migration.Refused, Err: err})
			s.memoryLost(err)
		}
	case *wire.Committed:
		if fromTarget {
			s.result.NewPID, s.gone = int(m.PID), m.PID == 0
			s.step(migration.Event{Kind: migration.Committed})
		}
	case *wire.Leased, *wire.LeaseRefused:
		if fromEntry {
			s.answered(leaseError(m, p.name))
		}
	case *wire.Owner:
		if fromEntry {
			s.step(ownerEvent(m))
		}
	default:
		return false
	}
	return true
}

func ownerEvent(m *wire.Owner) migration.Event {
	return migration.Event{Kind: migration.OwnerIs, Owner: migration.Owner{Host: m.Host, Epoch: m.Epoch, Unknown: m.Unknown}}
}

// leaseError returns what an entry's answer means.
func leaseError(m wire.Message, entry string) error {
	if r, ok := m.(*wire.LeaseRefused); ok {
		return &wire.RefusedError{Who: "entry " + entry, Code: r.Code, Reason: r.Reason}
	}
	return nil
}

// requestProcess handles a request that concerns the move of a process, and reports whether it does. A host can be target and entry at
// once: what both need to know comes once.
func (e *engine) requestProcess(in *incoming, f wire.Frame) bool {
	switch m := f.Message.(type) {
	case *wire.Process:
		e.processOffered(in, f.ID, m)
		return true
	case *wire.FlowSet:
		if t := e.arrivals[f.ID]; t != nil && t.from == in {
			t.flowSet(m)
			return t.entry != e.cfg.Host
		}
		return false
	case *wire.ImageEnd, *wire.Held, *wire.Cancel:
		if t := e.arrivals[f.ID]; t != nil && t.from == in {
			t.frame(f.Message)
			return true
		}
		_, late := m.(*wire.ImageEnd)
		if late {
			in.send(f.ID, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "nothing was accepted under this id"})
		}
		return late
	}
	return false
}

// image stores a part of a tree's image. It is called by the goroutine that reads from the source, so that the source waits while it is at work.
func (e *engine) image(id uint64, m *wire.Image) {
	v, ok := e.images.Load(id)
	if !ok {
		return
	}
	if t, ok := v.(*processTarget); ok {
		t.store(m)
	}
}

// findProcess returns the process that listens for a service.
func (c *Config) findProcess(service string) (int, error) {
	i := slices.IndexFunc(c.Services, func(s ServiceConfig) bool { return s.Name == service })
	if i < 0 {
		return 0, fmt.Errorf("no service %q is configured", service)
	}
	return listenerOf(c.Services[i].Addresses)
}
