// SPDX-License-Identifier: Apache-2.0

package migration

import "errors"

// desk is the dispatcher's part in one connection: dispatcher/attempt.go in small.
type desk struct {
	sock socketState // frozen, then none, or live when it answers the client itself
	over bool

	epoch   uint32
	tried   int8
	gone    bool // the flow could not be taken back: it is not this connection's, or somebody else has it
	unknown bool // the attempt hears of nothing: see farmRules.lostUnsent

	// The attempt that is under way.
	has    bool
	id     uint8
	to     node
	at     uint32 // the flow's epoch before it is granted
	giver  Giver
	events []Event
	busy   bool
}

// nextServer tries the next server, or gives up.
func (f *farm) nextServer() {
	d := &f.desk
	if int(d.tried) == len(f.servers) {
		f.answer()
		return
	}
	d.to = node(d.tried)
	d.tried++
	d.id, d.at, d.has = uint8(d.tried), d.epoch, true
	d.giver = *NewGiver(f.limit, f.grace, f.atOnce[d.to])
	f.giverStep(Event{Kind: Start})
}

// answer ends the connection with the dispatcher's own words.
func (f *farm) answer() {
	d := &f.desk
	d.over, d.sock, f.settled = true, sockLive, f.now
	f.note("dispatcher: answers the client")
}

func (f *farm) giverStep(e Event) {
	d := &f.desk
	d.events = push(d.events, e)
	if d.busy {
		return
	}
	d.busy = true
	for len(d.events) > 0 && d.has {
		e := d.events[0]
		d.events = d.events[1:]
		if f.rules.backOnPeerLost && e.Kind == PeerLost && d.giver.state == GiverGranted {
			e.Kind = Refused
		}
		actions := d.giver.Step(f.clock(), e)
		f.note("dispatcher: giver %v -> %v", e.Kind, d.giver.state)
		f.examineStep("giver", e, d.giver.Deadline(), d.giver.state.Final(), d.giver.state == GiverGiven, actions)
		over := false
		for _, a := range actions {
			over = f.giverAct(a)
		}
		if over {
			d.events, d.busy = nil, false
			f.closeAttempt(actions[len(actions)-1].Err)
			return
		}
	}
	d.events, d.busy = nil, false
}

// giverAct reports whether the attempt is over.
func (f *farm) giverAct(a Action) bool {
	d := &f.desk
	f.note("dispatcher: %v", actionText(a))
	li := toServer(d.to)
	send := func(k frameKind) { f.send(li, entryE, f.links[li].view[1], frame{kind: k, id: d.id, epoch: d.at}) }
	switch a.Verb {
	case SendHandoff:
		g := f.links[li].view[1]
		f.send(li, entryE, g, frame{kind: frameHandoff, id: d.id, epoch: d.at, granted: f.atOnce[d.to]})
		switch {
		case g != 0:
		case f.rules.lostUnsent:
			d.unknown = true
			f.giverStep(Event{Kind: PeerLost, Err: errModel})
		default: // who has not been sent anything has nothing
			f.giverStep(Event{Kind: Refused, Err: errModel})
		}
	case SendCancel:
		send(frameCancel)
	case AskServer:
		send(frameLocate)
	case Grant:
		if !f.change(d.at, d.to) && (!f.row.known || f.row.owner != d.to || f.row.epoch != d.at+1) {
			f.giverStep(Event{Kind: CommitFailed, Err: errModel})
			break
		}
		f.giverStep(Event{Kind: CommitMade})
	case Deny: // the answer says who the owner is
	case TakeBack:
		f.takeBack()
	case Discard:
		d.sock = sockNone
	case Reset:
		s := &f.servers[d.to]
		// Had it been there to be asked, it would have been asked askAgain ago.
		f.outage = f.outage || max(s.downUntil, f.links[li].healsAt) >= f.now-askAgain
		f.robbed = s.sock == sockLive || f.moved
		if d.sock = sockNone; !f.rules.noReset {
			f.tell("reset by the dispatcher")
		}
	case Finish:
		return true
	default:
		f.fail("a giver said %v", a.Verb)
	}
	return false
}

func (f *farm) takeBack() {
	d := &f.desk
	if s := &f.servers[d.to]; s.over && f.told == "" && !f.foreign {
		f.fail("taken back from server %v, which may have had it", d.to)
	}
	if f.servers[d.to].had && f.told == "" && !f.foreign && !f.moved {
		f.fail("taken back from server %v, which has had it", d.to)
	}
	d.gone = !f.change(d.at+1, entryE) && !f.rules.takeBackBlindly
	d.epoch = d.at + 2
}

// closeAttempt goes on after Finish.
func (f *farm) closeAttempt(err error) {
	d := &f.desk
	state := d.giver.state
	d.has, d.giver, f.settled = false, Giver{}, f.now
	switch state {
	case GiverGiven:
		d.over = true
		if d.sock != sockNone {
			f.fail("a socket is left of a connection that was given away")
		}
	case GiverLost:
		d.over, d.sock = true, sockNone
		if f.rules.forgetBlindly && !errors.Is(err, ErrGone) {
			f.row = row{}
		}
	default:
		if d.gone {
			d.over, d.sock = true, sockNone
			return
		}
		f.nextServer()
	}
}

// dispatcherHears takes in a frame of a server's agent: an answer on its own link, a request on the agent's.
func (f *farm) dispatcherHears(li int8, g uint8, fr frame) {
	d, from := &f.desk, f.links[li].lo
	l := &f.links[li]
	mine := d.has && !d.unknown && d.to == from && d.id == fr.id
	if li == toDispatcher(from) {
		switch fr.kind {
		case frameLost:
			if l.view[1] == fr.generation {
				l.view[1] = 0
			}
		case frameCommit:
			f.commitAsked(li, g, fr, mine)
		default:
			f.fail("%v as a request to the dispatcher", fr)
		}
		return
	}
	switch fr.kind {
	case frameLost:
		if l.view[1] != fr.generation {
			return
		}
		l.view[1] = 0
		if d.has && d.to == from {
			f.giverStep(Event{Kind: PeerLost, Err: errModel})
		}
	case frameCommitted:
		if mine {
			f.giverStep(Event{Kind: Committed})
		}
	case frameRefuse:
		if mine {
			f.giverStep(Event{Kind: Refused, Err: errModel})
		}
	case frameOver:
		if mine {
			f.giverStep(Event{Kind: Over, Err: errModel})
		}
	case frameLocated:
		if !mine {
			return
		}
		k := Absent
		if fr.present {
			k = Present
		}
		f.giverStep(Event{Kind: k})
	default:
		f.fail("%v as an answer to the dispatcher", fr)
	}
}

func (f *farm) commitAsked(li int8, g uint8, fr frame, mine bool) {
	d, from := &f.desk, f.links[li].lo
	switch {
	case mine && d.at == fr.epoch:
		f.giverStep(Event{Kind: CommitAsked})
	case f.rules.grantAnyone && f.row.owner == entryE:
		f.change(f.row.epoch, from)
	}
	f.send(li, entryE, g, frame{
		kind: frameOwner, id: fr.id,
		owner: Owner{Host: hostName(f.row.owner), Epoch: f.row.epoch, Unknown: !f.row.known},
	})
}
