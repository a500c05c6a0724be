// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// imageBacklog is how much of an image may wait to be written to the target, in bytes. CRIU waits beyond that.
	imageBacklog = 8 << 20
	// restTime is how long new connections may take to come to rest before the freeze; restPause is the time between two looks.
	restTime  = 250 * time.Millisecond
	restPause = 500 * time.Microsecond
	// holdTime is how long packets of a tree's connections stay held when this agent dies: CRIU lets the tree go on then, at once. While it
	// lives, the agent prolongs the hold every holdRenew.
	holdTime  = 4 * time.Second
	holdRenew = time.Second
)

// processSource carries out what a migration.Source decides for a tree of processes. Its flow is the token, its export the dump. The engine
// owns it; CRIU runs beside, and asks the engine at two places what to do: before it stops the tree, and when the image has been
// taken.
type processSource struct {
	e         *engine
	id        uint64
	machine   *migration.Source
	token     tcprepair.Flow
	path      string // CRIU's
	process   *criu.Process
	addresses []netip.AddrPort // of its services
	target    string
	entry     string

	// waiting is what happens when the entry has answered.
	waiting func(error)
	// hook is where CRIU waits for a word, nil while it works.
	hook chan error
	// dumping is set while CRIU runs; given up, it is told so at the next opportunity.
	dumping bool
	givenUp atomic.Pointer[error]
	// given is set when the tree must not run here any more.
	given atomic.Bool
	// lazy is set when the tree's memory is to follow it, which memory is there for.
	lazy   bool
	memory *memoryServer
	flows  []tcprepair.Flow
	held   bool
	// recorded is set while a record says that the target may have the tree.
	recorded bool
	renewAt  time.Time // when to prolong the hold
	image    criu.Manifest
	// aheadRoom is how many bytes of memory the target takes ahead of the freeze.
	aheadRoom uint64

	pending  []migration.Event
	stepping bool
	over     bool // the machine has finished
	gone     bool // the target has it, and says that it does not live
	err      error

	started, frozenAt time.Time
	result            ProcessMoved
	done              func(ProcessMoved)
}

// startProcess begins to move a tree that has been looked at; done is called in the engine's goroutine when it is over.
func (e *engine) startProcess(path string, p *criu.Process, r ProcessRequest, done func(ProcessMoved)) {
	s := &processSource{
		e: e, id: newID(), path: path, process: p, target: r.To, started: time.Now(), done: done, lazy: r.Lazy || e.cfg.Process.Lazy,
		result: ProcessMoved{Name: p.Name, PID: p.PID, To: r.To, Processes: len(p.Tree)},
	}
	s.token = tokenOf(s.id)
	err := s.check()
	if t := e.arrivalOf(p); t != nil && errors.Is(err, errProcessMoves) {
		// It has only just come, and goes on as soon as it is here.
		t.after = append(t.after, func() { e.startProcess(path, p, r, done) })
		return
	}
	if err != nil {
		s.result.Outcome, s.result.Err = OutcomeResumed, err
		done(s.result)
		return
	}
	s.machine = migration.NewSource(migration.SourceParams{Host: e.cfg.Host, Target: s.target, Epoch: 1}, e.processTimes())
	e.processes[s.id] = s
	s.step(migration.Event{Kind: migration.Start})
}

// check looks for what speaks against the move on this side, and finds out what the tree serves.
func (s *processSource) check() error {
	e := s.e
	var servers []string
	for _, svc := range e.cfg.Services {
		for _, a := range svc.Addresses {
			if !svc.Process || !listensAt(s.process.Listeners(), a) {
				continue
			}
			if s.entry != "" && s.entry != svc.Entry {
				return errTwoEntries
			}
			if e.processMoves(svc) {
				return errProcessMoves
			}
			s.entry, servers = svc.Entry, svc.Servers
			s.addresses = append(s.addresses, a)
		}
	}
	others := slices.DeleteFunc(slices.Clone(servers), func(h string) bool { return h == e.cfg.Host })
	if s.target == "" && len(others) == 1 {
		s.target, s.result.To = others[0], others[0]
	}
	switch {
	case e.stopping:
		return errStopping
	case len(s.addresses) == 0:
		return errNoService
	case s.target == "":
		return errors.New("say where to with --to: the service has no server but this one, or several others")
	case s.target == e.cfg.Host:
		return errSelf
	case e.peer(s.target) == nil:
		return fmt.Errorf("%q is no configured peer", s.target)
	}
	_, err := s.connections(s.process)
	return err
}

func (s *processSource) step(ev migration.Event) { s.stepAt(time.Now(), ev) }

// stepAt is source.stepAt's twin.
func (s *processSource) stepAt(now time.Time, ev migration.Event) {
	s.pending = append(s.pending, ev)
	if s.stepping {
		return
	}
	s.stepping = true
	for len(s.pending) > 0 {
		ev := s.pending[0]
		s.pending = s.pending[1:]
		for _, a := range s.machine.Step(now, ev) {
			s.perform(a)
		}
	}
	s.stepping = false
}

func (s *processSource) perform(a migration.Action) {
	switch a.Verb {
	case migration.SendOffer:
		s.toTarget(s.offer())
	case migration.SendLease:
		s.ask(s.leaseFrame(), s.leased)
	case migration.SendCancel:
		s.toTarget(&wire.Cancel{Reason: a.Err.Error()})
	case migration.SendAbort:
		s.abort()
	case migration.AskExport:
		s.dump()
	case migration.Freeze:
		s.freeze()
	case migration.SendTransfer:
		s.result.Dump = time.Since(s.frozenAt)
		s.record()
		s.toTarget(&wire.ImageEnd{Files: s.image.Files, Bytes: s.image.Bytes, Digest: s.image.Digest})
	case migration.Thaw:
		s.giveUp(errors.New("the move was given up"))
	case migration.Discard:
		s.result.Freeze = time.Since(s.frozenAt)
		s.given.Store(true)
		if !s.keep() {
			s.end()
		}
	case migration.SendHeld:
		s.sendHeld()
	case migration.Reset:
		s.end()
	case migration.Release, migration.ResumeApp, migration.TellMigrated:
		// When CRIU has ended: until then the sockets take nothing.
	case migration.Finish:
		s.over, s.err = true, a.Err
		s.giveUp(a.Err)
		s.finish()
	default:
		s.e.log.Error("the source of a process cannot do this", "verb", a.Verb)
	}
}

func (s *processSource) offer() *wire.Process {
	p := s.process
	m := &wire.Process{
		Token: s.token, Name: p.Name, Root: uint32(p.Inside), ShellJob: p.ShellJob, Limit: s.e.processTimes().Limit, Bytes: p.Bytes,
		Services: s.addresses, Local: p.Listeners(), Lazy: s.lazy,
	}
	for _, id := range p.IDs {
		m.IDs = append(m.IDs, uint32(id))
	}
	for _, f := range p.Files {
		m.Files = append(m.Files, wire.File{Path: f.Path, Size: f.Size})
	}
	return m
}

func (s *processSource) leaseFrame() *wire.LeaseGroup {
	return &wire.LeaseGroup{Token: s.token, To: s.target, TTL: s.e.processTimes().Limit, Services: s.addresses}
}

func (s *processSource) leased(err error) {
	if err != nil {
		s.step(migration.Event{Kind: migration.LeaseRefused, Err: err})
		return
	}
	s.step(migration.Event{Kind: migration.Leased})
}

func (s *processSource) toTarget(m wire.Message) {
	if p := s.e.peers[s.target]; p != nil {
		p.send(s.id, m)
	}
}

// ask asks the entry; then is called with its answer. One question is open at a time.
func (s *processSource) ask(m wire.Message, then func(error)) {
	s.waiting = then
	if s.entry != s.e.cfg.Host {
		s.e.peers[s.entry].send(s.id, m)
		return
	}
	answer, _ := s.e.entry.Answer(time.Now(), s.id, m, s.e.cfg.Host)
	s.answered(leaseError(answer, s.entry))
}

func (s *processSource) answered(err error) {
	if then := s.waiting; then != nil {
		s.waiting = nil
		then(err)
	}
}

func (s *processSource) abort() {
	if s.entry != s.e.cfg.Host {
		s.e.peers[s.entry].send(s.id, &wire.Abort{Flow: s.token, Epoch: 1})
		return
	}
	owner := s.e.entry.Abort(time.Now(), s.id, s.token, s.e.cfg.Host)
	s.step(migration.Event{Kind: migration.OwnerIs, Owner: owner})
}

// finish ends the move when the machine and CRIU have.
func (s *processSource) finish() {
	if !s.over || s.dumping {
		return
	}
	if _, ok := s.e.processes[s.id]; !ok {
		return
	}
	s.release()
	s.stopServing()
	s.forget()
	delete(s.e.processes, s.id)
	r := s.result
	r.Err, r.Total = s.err, time.Since(s.started)
	switch s.machine.State() {
	case migration.SourceMoved:
		if s.memory != nil {
			r.LazyBytes = s.memory.bytes.Load()
			if s.memory.lost != nil {
				r.Outcome, r.Err = OutcomeLost, fmt.Errorf("it ran at the target, but its memory did not all follow: %w", s.memory.lost)
				s.e.counters.lost++
				break
			}
		}
		if r.NewPID == 0 && r.Err == nil && s.gone {
			r.Err = errLostThere
			r.Outcome = OutcomeLost
			s.e.counters.lost++
			break
		}
		r.Outcome = OutcomeMoved
		s.e.counters.movedOut++
		s.e.nowListening(s.addresses, false)
	case migration.SourceLost:
		r.Outcome = OutcomeLost
		s.e.counters.lost++
	default:
		r.Outcome = OutcomeResumed
		s.e.counters.resumed++
	}
	s.e.metrics.moved(Moved{Outcome: r.Outcome, Freeze: r.Freeze, Total: r.Total, Held: r.Held})
	if r.Err != nil {
		s.e.log.Warn("a process did not move", "name", r.Name, "pid", r.PID, "to", r.To, "outcome", r.Outcome, "error", r.Err)
	} else {
		s.e.log.Info("a process has moved", "name", r.Name, "pid", r.PID, "to", r.To, "connections", r.Connections, "freeze", r.Freeze, "total", r.Total)
	}
	s.done(r)
}
