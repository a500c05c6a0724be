// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"slices"
	"time"
)

// server is one host of the farm: its kernel, its agent (agent/taker.go in small) and the server process.
type server struct {
	// The kernel's part and the server's outlive the agent.
	sock     socketState
	inServer bool // the server has the socket, not the agent
	had      bool // it has, or has had it
	over     bool // it may have had it, as far as this life of the agent knows

	up        bool
	downUntil time.Duration

	// The agent's part is gone when it dies.
	has        bool
	taker      Taker
	id         uint8
	from       uint8 // generation of the dispatcher's link on which it is answered
	asked      bool
	restoring  bool // the kernel has restored the socket, the agent has not looked yet
	delivering bool
	outcome    outcome
	fenced     uint8   // the handoff that it has answered Absent to, having never seen it
	waiting    []frame // for the dispatcher, as soon as a connection stands
}

// outcome is what an agent remembers of a handoff that is over.
type outcome uint8

const (
	outcomeNone outcome = iota
	outcomeTaken
	outcomeRefused
	outcomeOver
)

// dies is world.dies's twin.
func (f *farm) dies(n node) bool {
	if f.crashed {
		return true
	}
	if f.crash == 0 {
		f.crashed = true
		f.killAgent(n, [2]bool{true, true}, 0)
		return true
	}
	if f.crash > 0 {
		f.crash--
	}
	return false
}

// killAgent ends an agent. how says what is true of a delivery that is under way: nothing yet; the connection is live and still the
// agent's; the server has it.
func (f *farm) killAgent(n node, keep [2]bool, how int8) {
	s := &f.servers[n]
	if s.delivering {
		switch how {
		case 1:
			f.killed = true
			f.tell("closed by " + n.String())
		case 2:
			f.hand(n)
		}
	}
	if !s.inServer {
		s.sock = sockNone
	}
	*s = server{sock: s.sock, inServer: s.inServer, had: s.had, downUntil: max(s.downUntil, f.now)}
	for _, li := range []int8{toServer(n), toDispatcher(n)} {
		f.links[li].cut(keep)
		f.links[li].forget(n)
	}
	f.note("%v: agent is dead", n)
}

// hand gives the live connection to the server.
func (f *farm) hand(n node) {
	s := &f.servers[n]
	s.sock, s.inServer, s.had = sockLive, true, true
	f.note("%v: LIVE", n)
}

func (f *farm) takerStep(n node, e Event) {
	s := &f.servers[n]
	actions := s.taker.Step(f.clock(), e)
	f.note("%v: taker %v -> %v", n, e.Kind, s.taker.state)
	f.examineStep("taker", e, s.taker.Deadline(), s.taker.state.Final(), s.taker.state == TakerTaken, actions)
	for _, a := range actions {
		if f.dies(n) {
			return
		}
		f.takerAct(n, a)
	}
	f.dies(n)
}

func (f *farm) takerAct(n node, a Action) {
	s := &f.servers[n]
	f.note("%v: %v", n, actionText(a))
	answer := func(fr frame) {
		fr.id = s.id
		f.send(toServer(n), n, s.from, fr)
	}
	switch a.Verb {
	case Restore:
		if s.sock != sockNone {
			f.fail("server %v: restored twice", n)
		}
		s.sock, s.restoring = sockFrozen, true
	case SendCommit:
		f.request(n, frame{kind: frameCommit, id: s.id, epoch: s.taker.epoch})
		if f.rules.deliverBeforeAnswer && s.sock == sockFrozen {
			f.hand(n)
		}
	case Deliver:
		s.delivering = true
	case SendCommitted:
		answer(frame{kind: frameCommitted})
	case SendRefuse:
		answer(frame{kind: frameRefuse})
	case SendOver:
		answer(frame{kind: frameOver})
	case Discard:
		if s.inServer {
			f.fail("server %v: its agent discards what the server has", n)
		}
		s.sock = sockNone
	case Release: // held packets go to the socket, if there is one
	case Finish:
		s.has, s.outcome, f.settled = false, outcomeRefused, f.now
		switch {
		case a.Err == nil:
			s.outcome = outcomeTaken
		case s.over:
			s.outcome = outcomeOver
			return // that has been said
		}
		if s.asked {
			answer(frame{kind: frameLocated, present: a.Err == nil})
		}
	default:
		f.fail("a taker said %v", a.Verb)
	}
}

// request sends a frame to the dispatcher, now or once a connection stands.
func (f *farm) request(n node, fr frame) {
	s, li := &f.servers[n], toDispatcher(n)
	if g := f.links[li].view[0]; g != 0 {
		f.send(li, n, g, fr)
		return
	}
	if !slices.Contains(s.waiting, fr) {
		s.waiting = push(s.waiting, fr)
	}
}

// agentHears takes in a frame of the dispatcher: a request on its link, an answer on the agent's own.
func (f *farm) agentHears(li int8, n node, g uint8, fr frame) {
	s, l := &f.servers[n], &f.links[li]
	mine := s.has && s.id == fr.id
	switch fr.kind {
	case frameLost:
		if l.view[0] == fr.generation {
			l.view[0] = 0
			if li == toDispatcher(n) {
				s.waiting = nil
			}
		}
	case frameHandoff:
		if s.has {
			f.fail("server %v: a second handoff", n)
		}
		if s.fenced == fr.id && !f.rules.unfenced {
			f.send(li, n, g, frame{kind: frameRefuse, id: fr.id})
			return
		}
		s.has, s.id, s.from, s.asked = true, fr.id, g, false
		s.taker = *NewTaker(TargetParams{Host: n.String(), Epoch: fr.epoch, Limit: f.limit}, fr.granted, f.cfg)
		f.takerStep(n, Event{Kind: Start})
	case frameCancel:
		if mine && s.from == g {
			f.takerStep(n, Event{Kind: Canceled, Err: errModel})
		}
	case frameLocate:
		f.locate(n, g, fr, mine)
	case frameOwner:
		if mine {
			f.takerStep(n, Event{Kind: OwnerIs, Owner: fr.owner})
		}
	default:
		f.fail("%v to an agent", fr)
	}
}

func (f *farm) locate(n node, g uint8, fr frame, mine bool) {
	s := &f.servers[n]
	if mine && !f.rules.hastyAbsent {
		s.asked, s.from = true, g
		return
	}
	present := s.sock == sockLive
	switch {
	case s.outcome == outcomeNone || f.rules.forgetful:
	case s.outcome == outcomeOver:
		f.send(toServer(n), n, g, frame{kind: frameOver, id: fr.id})
		return
	default:
		present = s.outcome == outcomeTaken
	}
	if !present {
		s.fenced = fr.id
	}
	f.send(toServer(n), n, g, frame{kind: frameLocated, id: fr.id, present: present})
}
