// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/gate"
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
	flows   []tcprepair.Flow
	held    gate.Direction
	renewAt time.Time // when to prolong the hold
	image   criu.Manifest
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
func (e *engine) startProcess(path string, p *criu.Process, to string, done func(ProcessMoved)) {
	s := &processSource{
		e: e, id: newID(), path: path, process: p, target: to, started: time.Now(), done: done,
		result: ProcessMoved{Name: p.Name, PID: p.PID, To: to, Processes: len(p.Tree)},
	}
	s.token = tokenOf(s.id)
	err := s.check()
	if t := e.arrivalOf(p); t != nil && errors.Is(err, errProcessMoves) {
		// It has only just come, and goes on as soon as it is here.
		t.after = append(t.after, func() { e.startProcess(path, p, to, done) })
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

// connections returns the tree's connections, or why they cannot all move.
func (s *processSource) connections(p *criu.Process) ([]tcprepair.Flow, error) {
	var flows []tcprepair.Flow
	for _, k := range p.Sockets {
		switch {
		case k.Connects:
			return nil, fmt.Errorf("%w, from %v", errConnecting, k.Local)
		case !k.TCP || !k.Remote.IsValid():
			continue
		}
		f := tcprepair.NewFlow(k.Local, k.Remote)
		if !slices.Contains(s.addresses, f.Local) {
			return nil, fmt.Errorf("%w: %v", errOwnFlow, f)
		}
		flows = append(flows, f)
	}
	return flows, nil
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
		s.toTarget(&wire.ImageEnd{Files: s.image.Files, Bytes: s.image.Bytes, Digest: s.image.Digest})
	case migration.Thaw:
		s.giveUp(errors.New("the move was given up"))
	case migration.Discard:
		s.result.Freeze = time.Since(s.frozenAt)
		s.end()
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
		Services: s.addresses, Local: p.Listeners(),
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

// dump lets CRIU run. It stops nothing before freeze.
func (s *processSource) dump() {
	p := s.e.peers[s.target]
	if p == nil || p.link == nil {
		s.step(migration.Event{Kind: migration.ExportRefused, Err: migration.ErrPeerLost})
		return
	}
	link := p.link
	s.dumping = true
	sink := func(p criu.Piece) error {
		if err := s.givenUp.Load(); err != nil {
			return *err
		}
		if err := link.Room(imageBacklog); err != nil {
			return err
		}
		return link.Send(s.id, &wire.Image{File: p.File, Data: p.Data, Pages: p.Pages})
	}
	cfg := criu.DumpConfig{
		Path: s.path, PID: s.process.PID, Inside: s.process.Inside, Processes: len(s.process.Tree), ShellJob: s.process.ShellJob,
		Ahead: criu.NewAhead(s.aheadRoom), Sink: sink,
		BeforeFreeze: func() error { return s.await(func() { s.shut() }) },
		Stopped: func(m criu.Manifest) error {
			return s.await(func() {
				s.image, s.result.ImageBytes = m, m.Bytes
				s.stopped()
			})
		},
	}
	tree := s.process.Tree
	go func() {
		err := cfg.Ahead.Send(tree, sink)
		if err == nil {
			err = criu.Dump(cfg)
		}
		s.e.post(func(*engine) { s.dumped(err) })
	}()
}

// await brings CRIU's question to the engine and waits for the answer. It is called in CRIU's goroutine.
func (s *processSource) await(then func()) error {
	reply := make(chan error, 1)
	s.e.post(func(*engine) {
		if err := s.givenUp.Load(); err != nil {
			reply <- *err
			return
		}
		s.hook = reply
		then()
	})
	select {
	case err := <-reply:
		return err
	case <-s.e.stopped:
		return errStopping
	}
}

// reply lets CRIU go on, if it waits.
func (s *processSource) reply(err error) {
	if s.hook != nil {
		s.hook <- err
		s.hook = nil
	}
}

// giveUp makes CRIU let the tree go on, now or as soon as it looks.
func (s *processSource) giveUp(err error) {
	if err == nil {
		return
	}
	s.givenUp.CompareAndSwap(nil, &err)
	s.reply(err)
}

// end lets CRIU end the tree. If CRIU is gone, the tree runs: it must not, any more.
func (s *processSource) end() {
	if !s.dumping {
		s.kill()
	}
	s.reply(nil)
}

func (s *processSource) kill() {
	for _, pid := range s.process.Tree {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// shut lets new connections wait at the entry, so that those under way can come to rest.
func (s *processSource) shut() {
	s.ask(&wire.Shut{}, func(err error) {
		if err != nil {
			s.step(migration.Event{Kind: migration.Canceled, Err: err})
			return
		}
		go s.rest()
	})
}

// rest waits until no connection is half-way between the network and the tree, and looks at the tree then. It runs beside the engine.
func (s *processSource) rest() {
	var p *criu.Process
	err := errHandshakes
	for deadline := time.Now().Add(restTime); err != nil && time.Now().Before(deadline); {
		var n int
		if n, err = handshakes(s.addresses); err == nil && n == 0 && s.process.Waiting() == 0 {
			break
		}
		err = errHandshakes
		time.Sleep(restPause)
	}
	if s.process.Waiting() == 0 {
		// A handshake that hangs is no reason: its client will begin anew.
		p, err = criu.Inspect(s.process.PID)
	}
	s.e.post(func(*engine) { s.rested(p, err) })
}

// rested tells target and entry which connections go.
func (s *processSource) rested(p *criu.Process, err error) {
	if s.over {
		return
	}
	if err == nil {
		s.flows, err = s.connections(p)
	}
	if err != nil {
		s.step(migration.Event{Kind: migration.Canceled, Err: err})
		return
	}
	s.process, s.result.Connections = p, len(s.flows)
	s.announce(s.flows)
}

// announce sends the connections in frames of a bounded size. The entry answers each.
func (s *processSource) announce(flows []tcprepair.Flow) {
	n := min(len(flows), wire.MaxFlowSet)
	if n == 0 {
		s.step(migration.Event{Kind: migration.Exported})
		return
	}
	m := &wire.FlowSet{Flows: flows[:n]}
	if s.target != s.entry {
		s.toTarget(m)
	}
	s.ask(m, func(err error) {
		if err != nil {
			s.step(migration.Event{Kind: migration.Canceled, Err: err})
			return
		}
		s.announce(flows[n:])
	})
}

// freeze holds the connections' packets and lets CRIU stop the tree.
func (s *processSource) freeze() {
	s.frozenAt = time.Now()
	if err := s.hold(s.frozenAt, gate.Ingress); err != nil {
		s.step(migration.Event{Kind: migration.FreezeFailed, Err: fmt.Errorf("hold packets: %w", err)})
		return
	}
	s.reply(nil)
}

// stopped is when the tree stands still and its image has been taken.
func (s *processSource) stopped() {
	if s.over {
		return
	}
	if err := s.hold(time.Now(), holdBoth); err != nil {
		s.step(migration.Event{Kind: migration.Canceled, Err: fmt.Errorf("hold packets: %w", err)})
		return
	}
	s.step(migration.Event{Kind: migration.Frozen})
}

// hold keeps packets of the tree's connections. Those that the tree sends are let through until it stands still: what it writes just before could
// otherwise neither leave here nor be known there as lost. Afterwards the host is silenced, too.
func (s *processSource) hold(now time.Time, d gate.Direction) error {
	s.held, s.renewAt = d, now.Add(holdRenew)
	return s.e.gate.HoldAll(d, holdTime, s.flows...)
}

// tick prolongs the hold, and tells the machine of its deadline.
func (s *processSource) tick(now time.Time) {
	if s.held != 0 && !now.Before(s.renewAt) {
		if err := s.hold(now, s.held); err != nil {
			s.e.log.Error("cannot go on holding packets", "error", err)
		}
	}
	if d := s.machine.Deadline(); !d.IsZero() && !now.Before(d) {
		s.stepAt(now, migration.Event{Kind: migration.Tick})
	}
}

// sendHeld lets the gate forward from here on, and sends the target what was held.
func (s *processSource) sendHeld() {
	n, _ := s.e.hosts.Node(s.target)
	s.held = 0
	var frames [][]byte
	for _, f := range s.flows {
		held, err := s.e.gate.Forward(f, n, s.e.cfg.Gate.StrayTime)
		if err != nil {
			s.e.log.Error("cannot forward stray packets", "flow", f, "to", s.target, "error", err)
			_ = s.e.gate.Yield(f)
		}
		frames = append(frames, held...)
	}
	s.result.Held += len(frames)
	for len(frames) > 0 {
		n, size := 0, 0
		for n < len(frames) && (n == 0 || size+len(frames[n]) <= heldFrameBytes) {
			size += len(frames[n])
			n++
		}
		s.toTarget(&wire.Held{Frames: frames[:n]})
		frames = frames[n:]
	}
	s.toTarget(&wire.Held{Last: true})
}

// dumped takes in the end of CRIU.
func (s *processSource) dumped(err error) {
	s.dumping, s.hook = false, nil
	if s.machine.State() == migration.SourceMoved || s.machine.State() == migration.SourceLost {
		if err != nil {
			s.e.log.Warn("CRIU did not end a process that is another host's now: ending it", "pid", s.process.PID, "error", err)
			s.kill()
		}
		s.finish()
		return
	}
	// The tree runs again.
	s.release()
	if !s.over {
		if err == nil {
			err = errors.New("the process has ended")
		}
		kind := migration.Canceled
		if s.machine.State() == migration.SourceFreezing {
			kind = migration.FreezeFailed
		}
		s.step(migration.Event{Kind: kind, Err: err})
		return
	}
	s.finish()
}

// release lets go what was held here.
func (s *processSource) release() {
	if s.held == 0 {
		return
	}
	s.held = 0
	for _, f := range s.flows {
		held, err := s.e.gate.Release(f)
		if err != nil {
			s.e.log.Error("cannot release held packets", "flow", f, "error", err)
		}
		s.result.Held += held.Packets
	}
	s.result.Freeze = time.Since(s.frozenAt)
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
	delete(s.e.processes, s.id)
	r := s.result
	r.Err, r.Total = s.err, time.Since(s.started)
	switch s.machine.State() {
	case migration.SourceMoved:
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
