// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// inlineState is how much State travels with the snapshot, within the freeze; more is sent before it, in bytes.
const inlineState = 32 << 10

const (
	// queueAhead is how much of a receive queue, in bytes, is worth a round trip before the freeze. Below it the freeze
	// comes at once: while a client sends at full speed, every round lets the queue grow by more than it takes away.
	queueAhead = 1 << 20
	// queueRounds bounds those round trips. Nobody reads any more, so the client's window closes soon.
	queueRounds = 8
)

// heldFrameBytes bounds the packets in one Held frame, in bytes.
const heldFrameBytes = wire.ChunkSize

// holdBoth keeps the client's packets, and silences the host's own: a frozen socket can acknowledge nothing.
const holdBoth = gate.Ingress | gate.Egress

// source carries out what a migration.Source decides. The engine owns it.
type source struct {
	e       *engine
	id      uint64
	machine *migration.Source
	flow    tcprepair.Flow
	service string
	epoch   uint32
	app     *application
	target  string
	entry   string

	fd       int           // the application's socket, ours until it is closed
	share    share         // of parts, state and ahead
	parts    wire.Assembly // what the application has sent so far
	state    []byte
	ahead    []byte
	stored   bool // State has been sent ahead of the transfer
	outline  *tcprepair.Outline
	received int // how much of the receive queue has been sent ahead
	rounds   int
	snapshot []byte
	pending  []migration.Event
	stepping bool

	started, frozenAt time.Time
	// watermark is where the snapshot's receive queue ends, and missed what came into the socket behind it.
	watermark tcprepair.Watermark
	missed    [][]byte
	result    Moved
	done      func(Moved)
}

// Moved tells how a move ended.
type Moved struct {
	Flow    tcprepair.Flow
	To      string
	Outcome string
	Err     error
	// Freeze is the time from holding the first packet until the target's word that the flow is its own, or until the
	// connection went on here; Snapshot is the part of it in which the socket was frozen and read.
	Freeze, Snapshot, Total time.Duration
	Held                    int
	StateBytes              int
	SnapshotBytes           int
}

// Outcomes of a move.
const (
	OutcomeMoved   = "moved"
	OutcomeResumed = "resumed"
	OutcomeLost    = "lost"
	OutcomeGone    = "gone"
)

// startSource begins to move a connection; done is called in the engine's goroutine when it is over.
func (e *engine) startSource(app *application, st wire.FlowStatus, to string, done func(Moved)) {
	fail := func(err error) {
		done(Moved{Flow: st.Flow, To: to, Outcome: OutcomeResumed, Err: err})
	}
	svc, ok := e.service(st.Service, st.Flow)
	_, there := e.apps[app]
	switch {
	case !there:
		done(Moved{Flow: st.Flow, To: to, Outcome: OutcomeGone, Err: errNoFlow})
		return
	case e.stopping:
		fail(errStopping)
		return
	case !ok:
		fail(errNotServed)
		return
	case to == e.cfg.Host:
		fail(errSelf)
		return
	case e.moving[st.Flow] != nil:
		fail(errMoving)
		return
	case e.taking[st.Flow] != nil:
		// It has only just come, and goes on as soon as it is here.
		t := e.taking[st.Flow]
		t.after = append(t.after, func() { e.startSource(app, st, to, done) })
		return
	case e.peer(to) == nil:
		fail(fmt.Errorf("%q is no configured peer", to))
		return
	}
	s := &source{
		e: e, id: newID(), flow: st.Flow, service: st.Service, epoch: st.Epoch, app: app, target: to, entry: svc.Entry,
		fd: -1, started: time.Now(), done: done,
	}
	s.machine = migration.NewSource(migration.SourceParams{
		Host: e.cfg.Host, Target: to, Epoch: st.Epoch, Ahead: app.preparer(st.Service),
	}, e.times)
	e.sources[s.id], e.moving[s.flow] = s, s
	s.step(migration.Event{Kind: migration.Start})
}

func (s *source) step(ev migration.Event) { s.stepAt(time.Now(), ev) }

// stepAt feeds the machine and carries out what it says. An action may lead to the next event at once; that is
// queued, so that the actions of one step are never interleaved with those of another.
func (s *source) stepAt(now time.Time, ev migration.Event) {
	s.pending = append(s.pending, ev)
	if s.stepping {
		return
	}
	s.begin(now, nil)
}

// begin carries out actions, and what follows from them.
func (s *source) begin(now time.Time, actions []migration.Action) {
	s.stepping = true
	for {
		for _, a := range actions {
			s.perform(a)
		}
		if len(s.pending) == 0 {
			break
		}
		ev := s.pending[0]
		s.pending = s.pending[1:]
		actions = s.machine.Step(now, ev)
	}
	s.stepping = false
}

func (s *source) perform(a migration.Action) {
	s.e.reach("source", a.Verb.String())
	switch a.Verb {
	case migration.SendOffer:
		s.toTarget(&wire.Offer{Flow: s.flow, Service: s.service, Epoch: s.epoch, Limit: s.e.times.Limit})
	case migration.SendLease:
		s.lease()
	case migration.SendCancel:
		s.toTarget(&wire.Cancel{Reason: a.Err.Error()})
	case migration.SendAbort:
		s.abort()
	case migration.AskPrepare:
		s.app.send(s.id, &wire.Prepare{Flow: s.flow, Target: s.target, Limit: s.e.times.Limit})
	case migration.SendAhead:
		s.sendBlob(wire.BlobAhead, s.ahead)
	case migration.AskExport:
		s.app.send(s.id, &wire.Export{Flow: s.flow, Target: s.target, Limit: s.e.times.Limit})
	case migration.SendState:
		s.stored = true
		if s.unseen() > queueAhead {
			s.sendReceived()
		}
		s.sendBlob(wire.BlobState, s.state)
	case migration.Freeze:
		s.freeze()
	case migration.SendTransfer:
		s.transfer()
	case migration.Thaw:
		s.thaw()
	case migration.Release:
		s.release()
	case migration.ResumeApp:
		s.app.send(s.id, &wire.Resume{Reason: a.Err.Error()})
	case migration.Discard:
		s.discard()
	case migration.SendHeld:
		s.sendHeld()
	case migration.TellMigrated:
		s.app.send(s.id, &wire.Migrated{})
	case migration.Reset:
		s.reset()
	case migration.Finish:
		s.finish(a.Err)
	default:
		s.e.log.Error("a source cannot do this", "verb", a.Verb)
	}
}

// toTarget sends to the target, which is not known to a source that was recovered from an older application.
func (s *source) toTarget(m wire.Message) {
	if p := s.e.peers[s.target]; p != nil {
		p.send(s.id, m)
	}
}

func (s *source) lease() {
	m := &wire.Lease{Flow: s.flow, Epoch: s.epoch, To: s.target, TTL: s.e.times.Limit}
	if s.entry != s.e.cfg.Host {
		s.e.peers[s.entry].send(s.id, m)
		return
	}
	if err := s.e.entry.Lease(time.Now(), s.id, m, s.e.cfg.Host); err != nil {
		s.step(migration.Event{Kind: migration.LeaseRefused, Err: err})
		return
	}
	s.step(migration.Event{Kind: migration.Leased})
}

func (s *source) abort() {
	if s.entry != s.e.cfg.Host {
		s.e.peers[s.entry].send(s.id, &wire.Abort{Flow: s.flow, Epoch: s.epoch})
		return
	}
	owner := s.e.entry.Abort(time.Now(), s.id, s.flow, s.e.cfg.Host)
	s.step(migration.Event{Kind: migration.OwnerIs, Owner: owner})
}

// sendBlob sends a value whole, ahead of the frame that will need it, and asks whether it has arrived.
func (s *source) sendBlob(b wire.Blob, value []byte) {
	s.sendParts(b, value)
	s.toTarget(&wire.StateSent{})
}

func (s *source) sendParts(b wire.Blob, value []byte) {
	ahead, tail := wire.Split(b, value)
	for _, c := range append(ahead, &wire.Chunk{Blob: b, Data: tail}) {
		s.toTarget(c)
	}
}

// frame takes in what the application says about this move; it owns fd.
func (s *source) frame(m wire.Message, fd int) {
	switch m := m.(type) {
	case *wire.Chunk:
		if err := s.share.take(s.e, len(m.Data)); err != nil {
			s.step(migration.Event{Kind: migration.Canceled, Err: err})
			return
		}
		if err := s.parts.Add(m, s.e.cfg.Migration.StateBytes); err != nil {
			s.app.lost(err)
		}
	case *wire.Prepared:
		s.ahead = s.parts.Ahead(m.Ahead)
		s.step(migration.Event{Kind: migration.Prepared})
	case *wire.Exported:
		if s.fd >= 0 || s.machine.State() != migration.SourceExporting {
			_ = unix.Close(fd)
			return
		}
		s.fd = fd
		s.state = s.parts.State(m.State)
		s.result.StateBytes = len(s.state)
		s.exported()
	case *wire.Refuse:
		err := &wire.RefusedError{Who: whoApplication, Code: m.Code, Reason: m.Reason}
		s.step(migration.Event{Kind: migration.ExportRefused, Err: err})
	}
}

// exported looks at the connection that has just stopped, while its kernel still receives: what can be read and sent now
// lengthens no freeze. Nobody reads from it any more, so its receive queue only grows.
func (s *source) exported() {
	var err error
	if s.outline, err = tcprepair.ReadOutline(s.fd); err != nil {
		s.step(migration.Event{Kind: migration.Canceled, Err: err})
		return
	}
	if s.outline.Flow != s.flow {
		err := fmt.Errorf("the application exported %v instead of %v", s.outline.Flow, s.flow)
		s.step(migration.Event{Kind: migration.Canceled, Err: err})
		return
	}
	s.step(migration.Event{Kind: migration.Exported, Large: len(s.state) > inlineState || s.unseen() > queueAhead})
}

// unseen returns how much of the receive queue has not been sent ahead.
func (s *source) unseen() int {
	queued, err := tcprepair.Unread(s.fd)
	if err != nil {
		return 0 // Take will say why
	}
	return queued - s.received
}

// sendReceived sends what stands in the receive queue ahead of the freeze.
func (s *source) sendReceived() {
	s.rounds++
	b, err := tcprepair.PeekReceived(s.fd, s.limits(), s.received)
	if err != nil || len(b) == 0 {
		return // Take will say why
	}
	s.received += len(b)
	s.sendParts(wire.BlobReceived, b)
}

// aheadStored goes on when the target has what was sent ahead, unless much has come in the meantime.
func (s *source) aheadStored() {
	if s.machine.State() == migration.SourceStoring && s.unseen() > queueAhead && s.rounds < queueRounds {
		s.sendReceived()
		s.toTarget(&wire.StateSent{})
		return
	}
	s.step(migration.Event{Kind: migration.Stored})
}

func (s *source) limits() tcprepair.Limits {
	return tcprepair.Limits{QueueBytes: s.e.cfg.Migration.QueueBytes}
}

// freeze holds the flow's packets, then freezes the socket and reads it. Whatever fails is undone.
func (s *source) freeze() {
	s.frozenAt = time.Now()
	if err := s.e.gate.Hold(s.flow, holdBoth, s.e.times.HoldTTL()); err != nil {
		s.step(migration.Event{Kind: migration.FreezeFailed, Err: fmt.Errorf("hold packets: %w", err)})
		return
	}
	snap, err := s.take()
	if err != nil {
		s.release()
		s.step(migration.Event{Kind: migration.FreezeFailed, Err: err})
		return
	}
	s.snapshot = snap
	s.result.Snapshot = time.Since(s.frozenAt)
	s.result.SnapshotBytes = len(snap)
	s.step(migration.Event{Kind: migration.Frozen})
}

// take freezes the socket and reads it; when it fails the socket is as it was.
func (s *source) take() ([]byte, error) {
	snap, err := s.outline.FreezeTake(s.fd, s.limits(), s.received)
	if err != nil {
		return nil, err
	}
	b, err := snap.AppendBinary(nil)
	if err != nil {
		s.thaw()
	}
	s.watermark = snap.Watermark()
	return b, err
}

func (s *source) transfer() {
	state := s.state
	if s.stored {
		state = nil
	}
	ahead, tail := wire.Split(wire.BlobSnapshot, s.snapshot)
	for _, c := range ahead {
		s.toTarget(c)
	}
	s.toTarget(&wire.Transfer{Snapshot: tail, State: state})
	s.snapshot = nil
}

func (s *source) thaw() {
	if err := tcprepair.Resume(s.fd); err != nil {
		s.e.log.Error("cannot thaw a connection", "flow", s.flow, "error", err)
	}
}

func (s *source) release() {
	held, err := s.e.gate.Release(s.flow)
	if err != nil {
		s.e.log.Error("cannot release held packets", "flow", s.flow, "error", err)
	}
	s.result.Held += held.Packets
}

func (s *source) discard() {
	s.result.Freeze = time.Since(s.frozenAt)
	if s.watermark != (tcprepair.Watermark{}) {
		missed, err := s.watermark.Missed(s.fd)
		if err != nil {
			s.e.log.Warn("the client will have to send again what came last", "flow", s.flow, "error", err)
		}
		s.missed = missed
	}
	if err := tcprepair.Discard(s.fd); err != nil {
		s.e.log.Error("cannot discard a connection that has moved", "flow", s.flow, "error", err)
	}
}

// sendHeld lets the gate forward from here on, and sends the target what was held.
func (s *source) sendHeld() {
	n, _ := s.e.hosts.Node(s.target)
	frames, err := s.e.gate.Forward(s.flow, n, s.e.cfg.Gate.StrayTime)
	if err != nil {
		s.e.log.Error("cannot forward stray packets", "flow", s.flow, "to", s.target, "error", err)
		_ = s.e.gate.Yield(s.flow) // at least nothing is held
	}
	s.result.Held += len(frames)
	frames = append(gate.Frames(s.missed), frames...)
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
	if p := s.e.peers[s.target]; p != nil && p.link != nil && len(s.e.sources) < manyMoves {
		p.link.Flush() // the client may wait for this, and for nothing that follows; of many moves, frames share their way
	}
}

func (s *source) reset() {
	if err := tcprepair.Reset(s.fd); err != nil {
		s.e.log.Error("cannot reset a connection", "flow", s.flow, "error", err)
	}
}

func (s *source) finish(err error) {
	s.share.giveAll(s.e)
	delete(s.e.sources, s.id)
	delete(s.e.moving, s.flow)
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
	r := s.result
	r.Flow, r.To, r.Err, r.Total = s.flow, s.target, err, time.Since(s.started)
	switch s.machine.State() {
	case migration.SourceMoved:
		r.Outcome = OutcomeMoved
		s.e.counters.movedOut++
	case migration.SourceLost:
		r.Outcome = OutcomeLost
		s.e.counters.lost++
	default:
		r.Outcome = OutcomeResumed
		var refused *wire.RefusedError
		if errors.As(err, &refused) && refused.Who == whoApplication && refused.Code == wire.CodeNoFlow {
			r.Outcome = OutcomeGone
		}
		if !s.frozenAt.IsZero() {
			r.Freeze = time.Since(s.frozenAt)
		}
		s.e.counters.resumed++
	}
	s.e.metrics.moved(r)
	if err != nil {
		s.e.log.Warn("a connection did not move", "flow", s.flow, "to", s.target, "outcome", r.Outcome, "error", err)
	} else {
		s.e.log.Debug("moved", "flow", s.flow, "to", s.target, "freeze", r.Freeze, "total", r.Total, "held", r.Held)
	}
	s.done(r)
}
