// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"slices"
	"time"
)

// host is one server: what its kernel keeps, its agent, and its application.
type host struct {
	// The kernel's part outlives the processes.
	sock      socket
	hold      bool
	holdUntil time.Time

	// The agent's part is gone when it dies.
	hasSource  bool
	source     Source
	sourceID   uint8
	sourceGen  uint8 // of the connection to the target that the offer went through
	hasTarget  bool
	target     Target
	targetID   uint8
	targetGen  uint8
	recovering bool         // the target is a new agent's
	local      []localEvent // answers of the agent's own kernel calls that it has not looked at yet
	waiting    []frame      // for the entry, as soon as a connection stands
	seen       []uint8      // offers that have been answered
	appLinked  bool

	downUntil time.Duration
	toApp     []frame
	toAgent   []frame
	app       app
}

// socket is the kernel's, with the descriptors that keep it.
type socket struct {
	state      socketState
	app, agent bool
}

type socketState uint8

const (
	sockNone socketState = iota
	sockLive
	sockFrozen
)

type localEvent struct {
	kind EventKind
	id   uint8
}

var errModel = errors.New("refused by the model")

// dies counts down to the death of the process that is at work; it reports whether the process is dead.
func (w *world) dies(n node) bool {
	if w.crashed {
		return true
	}
	if w.crash == 0 {
		w.crashed = true
		w.killAgent(n, [2]bool{true, true})
		return true
	}
	if w.crash > 0 {
		w.crash--
	}
	return false
}

// sourceStep feeds h's source and does what it says.
func (w *world) sourceStep(h node, e Event) {
	x := &w.hosts[h]
	if w.rules.resumeOnPeerLost && e.Kind == PeerLost && x.source.state == SourceSent {
		e.Kind = Refused
	}
	before := x.source.Deadline()
	actions := x.source.Step(w.clock(h), e)
	w.note("%v: source %v -> %v", h, e.Kind, x.source.state)
	w.examine(h, e, before, x.source.Deadline(), x.source.state.Final(), actions)
	for _, a := range actions {
		if w.dies(h) {
			return
		}
		w.sourceAct(h, a)
	}
	w.dies(h)
}

// examine checks what every step of a machine must keep.
func (w *world) examine(h node, e Event, before, after time.Time, final bool, actions []Action) {
	for i, a := range actions {
		if a.Verb == Finish && (i != len(actions)-1 || !final) {
			w.fail("host %v: %v: actions after Finish, or Finish in a state that is not final", h, e.Kind)
		}
	}
	if final {
		if len(actions) == 0 || actions[len(actions)-1].Verb != Finish {
			w.fail("host %v: %v led to a final state without Finish", h, e.Kind)
		}
		if !after.IsZero() {
			w.fail("host %v: a deadline after the end", h)
		}
		return
	}
	if e.Kind == Tick && !after.IsZero() && !after.After(w.clock(h)) {
		w.fail("host %v: a tick left a deadline that has passed (%v, before %v)", h, after.Sub(origin), before.Sub(origin))
	}
}

func (w *world) sourceAct(h node, a Action) {
	x := &w.hosts[h]
	id := x.sourceID
	w.note("%v: %v", h, a.Verb)
	toTarget := func(k frameKind) { w.send(h, h.other(), x.sourceGen, frame{kind: k, id: id, epoch: x.source.epoch}) }
	switch a.Verb {
	case SendOffer:
		toTarget(frameOffer)
	case SendLease:
		w.toEntry(h, frame{kind: frameLease, id: id, epoch: x.source.epoch})
	case SendCancel:
		toTarget(frameCancel)
	case SendAbort:
		w.toEntry(h, frame{kind: frameAbort, id: id, epoch: x.source.epoch})
	case AskPrepare:
		w.toApp(h, frame{kind: framePrepare, id: id})
	case AskExport:
		w.toApp(h, frame{kind: frameExport, id: id})
	case SendAhead, SendState:
		toTarget(frameStateSent)
	case Freeze:
		if x.sock.state == sockLive {
			x.sock.state = sockFrozen
			w.holdPackets(h)
			x.local = push(x.local, localEvent{Frozen, id})
		} else {
			x.local = push(x.local, localEvent{FreezeFailed, id})
		}
	case SendTransfer:
		toTarget(frameTransfer)
	case Thaw:
		w.thaw(h)
	case Release:
		x.hold = false
	case ResumeApp:
		w.toApp(h, frame{kind: frameResume, id: id})
	case Discard:
		w.discard(h)
	case SendHeld:
		x.hold = false
		toTarget(frameHeld)
	case TellMigrated:
		w.toApp(h, frame{kind: frameMigrated, id: id})
	case Reset:
		w.reset(h)
	case Finish:
		x.hasSource = false
		w.settled = w.now
		w.releaseDescriptor(h)
	default:
		w.fail("a source said %v", a.Verb)
	}
}

func (w *world) targetStep(h node, e Event) {
	x := &w.hosts[h]
	before := x.target.Deadline()
	actions := x.target.Step(w.clock(h), e)
	w.note("%v: target %v -> %v", h, e.Kind, x.target.state)
	w.examine(h, e, before, x.target.Deadline(), x.target.state.Final(), actions)
	for _, a := range actions {
		if w.dies(h) {
			return
		}
		w.targetAct(h, a)
	}
	w.dies(h)
}

func (w *world) targetAct(h node, a Action) {
	x := &w.hosts[h]
	id := x.targetID
	w.note("%v: %v", h, a.Verb)
	toSource := func(k frameKind) { w.send(h, h.other(), x.targetGen, frame{kind: k, id: id, epoch: x.target.epoch}) }
	switch a.Verb {
	case Reserve:
		toSource(frameAccept)
	case SendStored:
		toSource(frameStateStored)
	case Restore:
		if x.sock.state != sockNone {
			x.local = push(x.local, localEvent{RestoreFailed, id})
			return
		}
		w.holdPackets(h)
		x.sock = socket{state: sockFrozen, agent: true}
		x.local = push(x.local, localEvent{Restored, id})
		w.toApp(h, frame{kind: frameImport, id: id, epoch: x.target.epoch + 1})
		w.releaseIfUnheld(h)
	case SendCommit:
		kind := frameCommit
		switch {
		case x.recovering && w.rules.recoverByQuery:
			kind = frameQuery
		case x.recovering && !w.rules.recoverByCommit:
			kind = frameAbort
		}
		w.toEntry(h, frame{kind: kind, id: id, epoch: x.target.epoch})
		if w.rules.thawBeforeAnswer {
			w.thaw(h)
		}
	case Thaw:
		w.thaw(h)
		w.releaseDescriptor(h)
		if x.hold { // from here on it serves only the order of packets
			x.holdUntil = w.clock(h).Add(2 * w.cfg.HeldWait)
		}
	case ActivateApp:
		w.toApp(h, frame{kind: frameActivate, id: id, epoch: x.target.epoch + 1})
	case SendCommitted:
		toSource(frameCommitted)
	case SendRefuse:
		toSource(frameRefuse)
	case WithdrawApp:
		w.toApp(h, frame{kind: frameWithdraw, id: id})
	case Discard:
		w.discard(h)
	case Release:
		x.hold = false
	case Finish:
		x.hasTarget = false
		w.settled = w.now
		w.releaseDescriptor(h)
	default:
		w.fail("a target said %v", a.Verb)
	}
}

func (w *world) holdPackets(h node) {
	ttl := w.cfg.HoldTTL()
	if w.rules.shortHold {
		ttl = w.cfg.Limit / 2
	}
	w.hosts[h].hold, w.hosts[h].holdUntil = true, w.clock(h).Add(ttl)
}

func (w *world) thaw(h node) {
	if s := &w.hosts[h].sock; s.state == sockFrozen {
		s.state = sockLive
		w.note("%v: LIVE", h)
	}
}

func (w *world) discard(h node) { w.hosts[h].sock = socket{} }

func (w *world) reset(h node) {
	if w.hosts[h].sock.state != sockNone {
		w.tell("reset by " + h.String())
	}
	w.hosts[h].sock = socket{}
}

// tell notes that the client learns of the connection's end.
func (w *world) tell(by string) {
	if !w.clientTold {
		w.clientTold, w.toldBy = true, by
		w.note("client: %s", by)
	}
}

// releaseDescriptor closes the agent's descriptor.
func (w *world) releaseDescriptor(h node) {
	w.hosts[h].sock.agent = false
	w.releaseIfUnheld(h)
}

// releaseIfUnheld is the kernel's close of a socket whose last descriptor is gone: a live one ends with a FIN or RST, a
// frozen one vanishes (KERNEL 10).
func (w *world) releaseIfUnheld(h node) {
	x := &w.hosts[h]
	if x.sock.state == sockNone || x.sock.app || x.sock.agent {
		return
	}
	travels := func(f frame) bool {
		return f.kind == frameImport || f.kind == frameExported || f.kind == frameRecover
	}
	if slices.ContainsFunc(x.toApp, travels) || slices.ContainsFunc(x.toAgent, travels) {
		return
	}
	if x.sock.state == sockLive {
		w.tell("closed by " + h.String())
	} else {
		w.vanished = true
	}
	x.sock = socket{}
}

// hostReceives is the agent's end of its connections with other hosts.
func (w *world) hostReceives(h, from node, g uint8, f frame) {
	x := &w.hosts[h]
	isSource := x.hasSource && x.sourceID == f.id
	isTarget := x.hasTarget && x.targetID == f.id
	switch f.kind {
	case frameLost:
		w.hostLost(h, from, g)
	case frameOffer:
		w.offered(h, g, f)
	case frameAccept, frameStateStored, frameRefuse, frameCommitted, frameLeased, frameLeaseRefused:
		kinds := map[frameKind]EventKind{
			frameAccept: Accepted, frameStateStored: Stored, frameRefuse: Refused, frameCommitted: Committed,
			frameLeased: Leased, frameLeaseRefused: LeaseRefused,
		}
		if isSource {
			w.sourceStep(h, Event{Kind: kinds[f.kind], Err: errModel})
		}
	case frameStateSent, frameTransfer, frameHeld, frameCancel:
		kinds := map[frameKind]EventKind{
			frameStateSent: StateSent, frameTransfer: Transferred, frameHeld: HeldLast, frameCancel: Canceled,
		}
		if isTarget {
			w.targetStep(h, Event{Kind: kinds[f.kind], Err: errModel})
		}
	case frameOwner:
		switch {
		case isSource:
			w.sourceStep(h, Event{Kind: OwnerIs, Owner: f.owner})
		case isTarget:
			w.targetStep(h, Event{Kind: OwnerIs, Owner: f.owner})
		}
	}
}

func (w *world) offered(h node, g uint8, f frame) {
	x := &w.hosts[h]
	if slices.Contains(x.seen, f.id) {
		return
	}
	x.seen = push(x.seen, f.id)
	if x.hasSource || x.hasTarget || !x.appLinked || x.app.phase != appIdle || x.sock.state != sockNone {
		w.send(h, h.other(), g, frame{kind: frameRefuse, id: f.id})
		return
	}
	x.hasTarget, x.targetID, x.targetGen, x.recovering = true, f.id, g, false
	x.target = *NewTarget(TargetParams{Host: h.String(), Epoch: f.epoch, Limit: w.cfg.Limit}, w.cfg)
	w.targetStep(h, Event{Kind: Start})
}

// hostLost is the end of a connection as the agent at h sees it.
func (w *world) hostLost(h, from node, g uint8) {
	x := &w.hosts[h]
	l := w.link(h, from)
	if v := &l.view[l.side(h)]; *v == g {
		*v = 0
	}
	if from != entryE {
		if x.hasSource && x.sourceGen == g {
			w.sourceStep(h, Event{Kind: PeerLost})
		}
		if x.hasTarget && x.targetGen == g && !w.crashed {
			w.targetStep(h, Event{Kind: PeerLost})
		}
		return
	}
	w.entryLost(h)
}

// agentHears is the agent's end of its connection with the application.
func (w *world) agentHears(h node, f frame) {
	x := &w.hosts[h]
	isSource := x.hasSource && x.sourceID == f.id
	isTarget := x.hasTarget && x.targetID == f.id
	switch f.kind {
	case frameLost:
		x.appLinked = false
		if x.hasSource {
			w.sourceStep(h, Event{Kind: ApplicationLost})
		}
		if x.hasTarget && !w.crashed {
			w.targetStep(h, Event{Kind: ApplicationLost})
		}
	case framePrepared:
		if isSource {
			w.sourceStep(h, Event{Kind: Prepared})
		}
	case frameExported:
		if !isSource || x.source.state != SourceExporting {
			w.toApp(h, frame{kind: frameResume, id: f.id})
			w.releaseIfUnheld(h)
			return
		}
		x.sock.agent = true
		w.sourceStep(h, Event{Kind: Exported, Large: f.large})
	case frameExportRefused:
		if isSource {
			w.sourceStep(h, Event{Kind: ExportRefused, Err: errModel})
		}
	case frameImported:
		if isTarget {
			w.targetStep(h, Event{Kind: Imported})
		}
	case frameImportRefused:
		if isTarget {
			w.targetStep(h, Event{Kind: ImportRefused, Err: errModel})
		}
	case frameRecover:
		w.recover(h, f)
	}
}

// recover takes up a move that the agent's predecessor left behind.
func (w *world) recover(h node, f frame) {
	x := &w.hosts[h]
	x.sock.agent = x.sock.state != sockNone
	var actions []Action
	if f.target {
		var t *Target
		t, actions = RecoverTarget(w.clock(h), TargetParams{Host: h.String(), Epoch: f.epoch}, w.cfg)
		x.hasTarget, x.target, x.targetID, x.targetGen, x.recovering = true, *t, f.id, 0, true
	} else {
		var s *Source
		s, actions = RecoverSource(w.clock(h), SourceParams{Host: h.String(), Target: h.other().String(), Epoch: f.epoch}, w.cfg)
		x.hasSource, x.source, x.sourceID, x.sourceGen = true, *s, f.id, 0
		w.holdPackets(h)
	}
	for _, a := range actions {
		if w.dies(h) {
			return
		}
		if f.target {
			w.targetAct(h, a)
		} else {
			w.sourceAct(h, a)
		}
	}
	w.dies(h)
}
