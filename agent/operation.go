// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// MoveRequest is what an operator wants moved.
type MoveRequest struct {
	// Flow is the one connection to move; all when it is not valid.
	Flow tcprepair.Flow
	// To is the host to move to; any other server of the service when empty.
	To string
	// Service restricts a move of all connections to one service.
	Service string
	// Drain keeps new connections away and goes on until none is left.
	Drain bool
	// Concurrency is how many moves are in flight; the configuration's when zero.
	Concurrency int
	// Timeout bounds everything; none when zero.
	Timeout time.Duration
}

const (
	// maxTries is how often an operation tries one connection, or as often as there are servers; retryPause is how long it
	// waits after the first answer of "busy", and doubles.
	maxTries   = 4
	retryPause = 25 * time.Millisecond
	// relistTime is the pause between two looks for connections that a drain has not seen yet.
	relistTime = 40 * time.Millisecond
	// quietLists is how often a drain must find nothing to move before it is over: a connection can be on its way from
	// the listen queue to the application.
	quietLists = 2
	// maxBacklog is what may wait for one peer when another move begins, in bytes.
	maxBacklog = 32 << 20
	// tellTime is how long a drain waits for the entries to confirm it.
	tellTime = 3 * time.Second
)

// operation moves many connections. The engine owns it.
type operation struct {
	e       *engine
	req     MoveRequest
	report  func(Moved)
	planned func(total int)
	over    func(error)

	queue    []located
	seen     map[tcprepair.Flow]int // tries
	total    int
	active   int
	next     int // rotates over the targets
	listing  bool
	relistAt time.Time
	quiet    int
	pumping  bool
	silent   int // applications that did not answer the last question
	started  time.Time
	deadline time.Time
	// late is set when the deadline has passed: nothing is begun any more. cut are the connections that stayed because of it.
	late     bool
	cut      int
	err      error
	finished bool
}

// startOperation begins req; the callbacks are called in the engine's goroutine.
func (e *engine) startOperation(req MoveRequest, planned func(int), report func(Moved), over func(error)) *operation {
	if req.Concurrency <= 0 {
		req.Concurrency = e.cfg.Migration.Concurrency
	}
	op := &operation{e: e, req: req, report: report, planned: planned, over: over, seen: make(map[tcprepair.Flow]int), started: time.Now()}
	if req.Timeout > 0 {
		op.deadline = time.Now().Add(req.Timeout)
	}
	e.ops[op] = struct{}{}
	if err := op.check(); err != nil {
		op.cancel(err)
		return op
	}
	if req.Drain {
		e.setDraining(true)
	}
	op.list()
	return op
}

// check looks for mistakes in what was asked for.
func (op *operation) check() error {
	named := func(s ServiceConfig) bool { return s.Name == op.req.Service }
	switch {
	case op.req.Service != "" && !slices.ContainsFunc(op.e.cfg.Services, named):
		return fmt.Errorf("no service %q is configured", op.req.Service)
	case op.req.To == "":
		return nil
	case op.req.To == op.e.cfg.Host:
		return errSelf
	case op.e.peer(op.req.To) == nil:
		return fmt.Errorf("%q is no configured peer", op.req.To)
	}
	return nil
}

// list looks for connections to move.
func (op *operation) list() {
	op.listing = true
	op.e.list(wire.List{Flow: op.req.Flow}, func(found []located, silent int) {
		op.listing = false
		op.silent = silent
		op.add(found)
		op.leaveQueued()
		op.pump()
	})
}

func (op *operation) add(found []located) {
	single := op.req.Flow.IsValid()
	added := 0
	for _, l := range found {
		if single && l.status.Flow != op.req.Flow {
			continue // an application that does not mind the question
		}
		if op.seen[l.status.Flow] > 0 || op.req.Service != "" && l.status.Service != op.req.Service {
			continue
		}
		if !l.status.Movable && !single {
			op.seen[l.status.Flow] = maxTries
			op.report(Moved{
				Flow: l.status.Flow, Outcome: OutcomeResumed,
				Err: wire.Refusef("application", wire.CodeNotMovable, "it has no exporter for %s", l.status.Service),
			})
			continue
		}
		op.seen[l.status.Flow] = 1
		op.next++
		l.first = op.next
		op.queue = append(op.queue, l)
		added++
	}
	if single && len(found) == 0 && op.total == 0 {
		op.cancel(fmt.Errorf("%v: %w", op.req.Flow, errNoFlow))
	}
	op.total += added
	if added > 0 {
		op.quiet = 0
		op.planned(op.total)
	} else {
		op.quiet++
	}
}

// pump starts moves as far as the concurrency allows, and ends the operation when nothing is left to do.
func (op *operation) pump() {
	if op.pumping {
		return // the loop below sees what has changed
	}
	op.pumping = true
	defer func() { op.pumping = false }()
	for op.err == nil && !op.late && op.active < op.req.Concurrency && len(op.queue) > 0 && !op.e.congested() {
		l, ok := op.take(time.Now())
		if !ok {
			break
		}
		to, err := op.target(l)
		if err != nil {
			op.report(Moved{Flow: l.status.Flow, Outcome: OutcomeResumed, Err: err})
			continue
		}
		op.active++
		op.e.startSource(l.app, l.status, to, func(m Moved) { op.moved(l, m) })
	}
	if op.active > 0 || op.listing || op.finished {
		return
	}
	switch {
	case op.err != nil:
	case len(op.queue) > 0:
		return
	case op.cut > 0:
		op.err = fmt.Errorf("not everything was moved within %v", op.req.Timeout)
	case op.req.Drain && op.e.untold() != "" && !op.late && time.Since(op.started) < tellTime:
		return // tick looks again
	case op.req.Drain && op.e.untold() != "":
		op.err = fmt.Errorf("%s, the entry, could not be told: new connections still come here; it will be told as soon as it can be", op.e.untold())
	case op.silent > 0 && (op.req.Drain || !op.req.Flow.IsValid()):
		op.err = fmt.Errorf("%d applications did not say which connections they have: those are still here", op.silent)
	case op.req.Drain && op.quiet < quietLists:
		if op.relistAt.IsZero() {
			op.relistAt = time.Now().Add(relistTime)
		}
		return
	}
	op.finished = true
	delete(op.e.ops, op)
	op.over(op.err)
}

// congested reports whether so much waits to be sent to a peer that no move should be begun: a link gives a peer up
// that lets too much pile up.
func (e *engine) congested() bool {
	for _, p := range e.peers {
		if p.link != nil && p.link.Backlog() > maxBacklog {
			return true
		}
	}
	return false
}

// take returns the next connection whose time has come.
func (op *operation) take(now time.Time) (located, bool) {
	for i, l := range op.queue {
		if now.Before(l.notBefore) {
			continue
		}
		if i == 0 {
			op.queue = op.queue[1:] // as a rule; deleting would move the rest
		} else {
			op.queue = slices.Delete(op.queue, i, i+1)
		}
		return l, true
	}
	return located{}, false
}

// target chooses where a connection goes: the servers of its service in turn.
func (op *operation) target(l located) (string, error) {
	if op.req.To != "" {
		return op.req.To, nil
	}
	svc, ok := op.e.service(l.status.Service, l.status.Flow)
	if !ok {
		return "", errNotServed
	}
	others := slices.DeleteFunc(slices.Clone(svc.Servers), func(s string) bool { return s == op.e.cfg.Host })
	if len(others) == 0 {
		return "", errNoTarget
	}
	// The first try takes turns with other connections; each further one takes the next server.
	return others[(l.first+op.seen[l.status.Flow])%len(others)], nil
}

// moved takes in the end of one move. A refusal that another host or a later moment may not repeat is tried again.
func (op *operation) moved(l located, m Moved) {
	op.active--
	switch {
	case m.Outcome == OutcomeResumed && op.err == nil && !op.late && op.seen[m.Flow] < op.tries(l) && op.retryable(m.Err):
		l.notBefore = time.Time{}
		switch codeOf(m.Err) {
		case wire.CodeBusy, wire.CodeNotNow, wire.CodeInUse:
			l.notBefore = time.Now().Add(retryPause << op.seen[m.Flow])
		}
		op.seen[m.Flow]++
		op.queue = append(op.queue, l)
	case m.Outcome == OutcomeGone && op.req.Drain && errors.Is(m.Err, errNoFlow):
		delete(op.seen, m.Flow) // its application may be back with it
		op.report(m)
	default:
		if m.Outcome == OutcomeResumed && op.late {
			op.cut++ // there may have been another way
		}
		op.report(m)
	}
	op.pump()
}

// tries returns how often a connection is tried: once at each server at least.
func (op *operation) tries(l located) int {
	svc, _ := op.e.service(l.status.Service, l.status.Flow)
	return max(maxTries, len(svc.Servers))
}

func (op *operation) retryable(err error) bool {
	var r *wire.RefusedError
	if !errors.As(err, &r) {
		return op.req.To == "" && !errors.Is(err, errAborted)
	}
	switch r.Code {
	case wire.CodeBusy, wire.CodeNotNow, wire.CodeInUse:
		return true
	case wire.CodeDraining, wire.CodeNoService, wire.CodeNoAddress:
		return op.req.To == ""
	}
	return false
}

// cancel starts no further moves; those in flight end by themselves.
func (op *operation) cancel(err error) {
	if op.err == nil {
		op.err = err
	}
	op.leaveQueued()
	op.pump()
}

// expire is cancel for the end of the time that the operator has given. If what is in flight was all there was, it is in time.
func (op *operation) expire() {
	op.late = true
	op.leaveQueued()
	op.pump()
}

// leaveQueued reports what will not be begun any more; nothing while there is time.
func (op *operation) leaveQueued() {
	err := op.err
	switch {
	case err != nil:
	case op.late:
		err = errTimeout
		op.cut += len(op.queue)
	default:
		return
	}
	for _, l := range op.queue {
		op.report(Moved{Flow: l.status.Flow, Outcome: OutcomeResumed, Err: err})
	}
	op.queue = nil
}

func (op *operation) tick(now time.Time) {
	switch {
	case !op.deadline.IsZero() && now.After(op.deadline) && op.err == nil && !op.late:
		op.expire()
	case !op.relistAt.IsZero() && now.After(op.relistAt) && op.err == nil && !op.listing:
		op.relistAt = time.Time{}
		op.list()
	case op.err == nil:
		op.pump()
	}
}

// setDraining tells the entries of the services whether this host takes connections.
func (e *engine) setDraining(on bool) {
	if e.draining == on {
		return
	}
	e.draining = on
	e.reportDraining()
	for _, p := range e.peers {
		if e.entryFor(p.name) {
			p.tellPresence()
		}
	}
	e.setServices()
}

// entryFor reports whether host is the entry of a service that this host serves.
func (e *engine) entryFor(host string) bool {
	return slices.ContainsFunc(e.cfg.Services, func(s ServiceConfig) bool {
		return s.Entry == host && slices.Contains(s.Servers, e.cfg.Host)
	})
}

// untold returns an entry that has not confirmed the drain, empty when all have.
func (e *engine) untold() string {
	for _, p := range e.peers {
		if e.entryFor(p.name) && !p.told {
			return p.name
		}
	}
	return ""
}

// abort gives up the moves of one flow, or all of them.
func (e *engine) abort(f tcprepair.Flow) int {
	n := 0
	if !f.IsValid() {
		n = e.abortProcesses()
	}
	for _, s := range slices.Collect(maps.Values(e.sources)) {
		if !f.IsValid() || s.flow == f {
			n++
			s.step(migration.Event{Kind: migration.Canceled, Err: errAborted})
		}
	}
	return n
}
