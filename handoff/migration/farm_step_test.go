// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// farmStep is one thing that can happen next.
type farmStep struct {
	op   farmOp
	node node
	link int8
	// stream is the direction of a link's connection, or 2 and above for what is left of older ones.
	stream int8
	crash  int8 // after how many actions the agent dies
	keep   [2]bool
	how    int8 // see killAgent
	long   bool
}

type farmOp uint8

const (
	farmStart      farmOp = iota // the first request is here
	farmDeliver                  // a frame is read
	farmRestored                 // the agent sees that the kernel has restored the socket
	farmDelivered                // the server has the connection
	farmConnect                  // a link stands again
	farmDialFail                 // an agent cannot connect to the dispatcher
	farmTickGiver                // the giver's deadline is over
	farmTickTaker                // a taker's
	farmRestart                  // an agent comes back
	farmTime                     // nothing happens until the next timer
	farmEnd                      // the server has answered, and client and server have closed the connection
	farmKillAgent                // fault
	farmKillServer               // fault: the process that has the connection
	farmBreak                    // fault: a connection breaks
	farmNoKernel                 // fault: the socket cannot be restored
	farmNoDelivery               // fault: the server does not take it
	farmOver                     // fault: the connection ends in the server's hands while it is delivered
	farmMove                     // no fault, but as rare: the connection moves on to a third server
	farmNewFlow                  // fault: the client opens a new connection from the same port
)

// foreignEpoch is that of a flow which the client has opened anew.
const foreignEpoch = 77

func (s farmStep) fault() bool { return s.op >= farmKillAgent || s.crash >= 0 }

func (s farmStep) String() string {
	names := [...]string{
		"start", "deliver", "restored", "delivered", "connect", "dial fails", "tick", "tick", "restart", "time", "END",
		"KILL agent", "KILL server", "BREAK", "KERNEL REFUSES", "SERVER REFUSES", "OVER", "MOVE", "NEW FLOW",
	}
	t := fmt.Sprintf("%s %v", names[s.op], s.node)
	if s.op == farmBreak {
		t += fmt.Sprintf(" link %d keep %v", s.link, s.keep)
	}
	if s.op == farmKillAgent {
		t += fmt.Sprintf(" keep %v, delivery at %d", s.keep, s.how)
	}
	if s.crash >= 0 {
		t += fmt.Sprintf(" CRASH after %d", s.crash)
	}
	if s.long {
		t += " for long"
	}
	return t
}

// stream returns the frames and the receiver of one stream of a link, and the generation of its connection.
func (f *farm) stream(li, stream int8) (q []frame, to node, g uint8) {
	l := &f.links[li]
	if stream < 2 {
		return l.queue[stream], [...]node{l.hi, l.lo}[stream], l.generation
	}
	o := l.old[stream-2]
	return o.queue, o.to, o.generation
}

func (f *farm) dialer(li int8) node {
	if l := &f.links[li]; li == toDispatcher(l.lo) {
		return l.lo
	}
	return entryE
}

// free lists what can happen without a fault and without time passing.
func (f *farm) free(out []farmStep) []farmStep {
	add := func(s farmStep) {
		s.crash = never
		out = append(out, s)
	}
	d := &f.desk
	if !d.has && !d.over {
		add(farmStep{op: farmStart, node: entryE})
	}
	due := func(t time.Time) bool { return !t.IsZero() && !t.After(f.clock()) }
	if d.has && !d.unknown && due(d.giver.Deadline()) {
		add(farmStep{op: farmTickGiver, node: entryE})
	}
	for h := hostA; h <= hostB; h++ {
		s := &f.servers[h]
		if !s.up {
			if f.now >= s.downUntil {
				add(farmStep{op: farmRestart, node: h})
			}
			continue
		}
		if s.restoring {
			add(farmStep{op: farmRestored, node: h})
		}
		if s.delivering {
			add(farmStep{op: farmDelivered, node: h})
		}
		if s.has && due(s.taker.Deadline()) {
			add(farmStep{op: farmTickTaker, node: h})
		}
	}
	for li := range int8(len(f.links)) {
		f.freeLink(li, add)
	}
	return out
}

func (f *farm) freeLink(li int8, add func(farmStep)) {
	l := &f.links[li]
	can := !l.up && f.now >= l.healsAt && f.servers[l.lo].up
	waiting := f.servers[l.lo].waiting
	switch who := f.dialer(li); {
	case l.view[l.side(who)] != 0:
	case who == entryE && can && !f.desk.over:
		add(farmStep{op: farmConnect, link: li, node: entryE})
	case who != entryE && len(waiting) > 0 && can:
		add(farmStep{op: farmConnect, link: li, node: who})
	case who != entryE && len(waiting) > 0 && f.now < l.healsAt:
		add(farmStep{op: farmDialFail, link: li, node: who})
	}
	for s := int8(0); int(s) < 2+len(l.old); s++ {
		if q, to, _ := f.stream(li, s); len(q) > 0 && (to == entryE || f.servers[to].up) {
			add(farmStep{op: farmDeliver, link: li, stream: s, node: to})
		}
	}
}

// farmCrashes lists the variants of a free step in which its agent dies on the way.
func farmCrashes(s farmStep, out []farmStep) []farmStep {
	switch {
	case s.node == entryE:
		return out
	case s.op == farmDeliver, s.op == farmRestored, s.op == farmDelivered, s.op == farmTickTaker:
		for k := range int8(5) {
			s.crash = k
			out = append(out, s)
		}
	}
	return out
}

// spoiled lists what can go wrong now.
func (f *farm) spoiled(out []farmStep) []farmStep {
	add := func(s farmStep) {
		s.crash = never
		out = append(out, s)
	}
	keeps := [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}}
	for h := hostA; h <= hostB; h++ {
		s := &f.servers[h]
		if s.sock == sockLive && s.inServer && f.row.owner == h && f.told == "" {
			add(farmStep{op: farmMove, node: h})
		}
		if s.sock == sockLive && s.inServer {
			add(farmStep{op: farmKillServer, node: h})
		}
		if !s.up {
			continue
		}
		ways := int8(1)
		if s.delivering {
			ways = 3
		}
		for how := range ways {
			for _, keep := range keeps {
				add(farmStep{op: farmKillAgent, node: h, keep: keep, how: how})
			}
			add(farmStep{op: farmKillAgent, node: h, keep: keeps[0], how: how, long: true})
		}
		if s.restoring {
			add(farmStep{op: farmNoKernel, node: h})
		}
		if s.delivering {
			add(farmStep{op: farmNoDelivery, node: h})
			add(farmStep{op: farmOver, node: h})
		}
	}
	for li := range int8(len(f.links)) {
		if f.links[li].up {
			for _, keep := range keeps {
				add(farmStep{op: farmBreak, link: li, keep: keep})
			}
			add(farmStep{op: farmBreak, link: li, long: true})
		}
	}
	if f.desk.has && !f.foreign && !f.served && f.told == "" {
		add(farmStep{op: farmNewFlow, node: entryE})
	}
	return out
}

// ending lists which server can finish with the connection: for that the client's packets must reach it.
func (f *farm) ending(out []farmStep) []farmStep {
	if f.desk.sock == sockFrozen && !f.rules.releaseEarly {
		return out
	}
	for h := hostA; h <= hostB && f.ends > 0; h++ {
		if s := &f.servers[h]; s.sock == sockLive && s.inServer && f.told == "" && !f.foreign {
			out = append(out, farmStep{op: farmEnd, node: h, crash: never})
		}
	}
	return out
}

// next returns when the next timer is over; false when there is none.
func (f *farm) next() (best time.Duration, found bool) {
	add := func(on bool, at time.Duration) {
		if on && at > f.now && (!found || at < best) {
			best, found = at, true
		}
	}
	timer := func(on bool, t time.Time) { add(on && !t.IsZero(), t.Sub(origin)) }
	timer(f.desk.has && !f.desk.unknown, f.desk.giver.Deadline())
	for h := range f.servers {
		s := &f.servers[h]
		timer(s.up && s.has, s.taker.Deadline())
		add(!s.up, s.downUntil)
	}
	for i := range f.links {
		add(true, f.links[i].healsAt)
	}
	return best, found
}

// long is an outage that no deadline outlasts.
func (f *farm) long() time.Duration { return 4*(f.limit+f.grace) + askAgain/2 }

// asking reports whether a server has been granted the flow and has not said what became of it.
func (f *farm) asking() bool {
	return f.desk.has && (f.desk.giver.state == GiverGranted || f.desk.giver.state == GiverAsking)
}

// delayed notes that the giver's question goes unanswered for d because of a fault.
func (f *farm) delayed(d time.Duration) {
	if f.asking() {
		f.slow += d
		f.outage = f.outage || f.slow >= f.grace-askAgain
	}
}

// take does s. It returns false when s cannot happen after all: a crash after more actions than there were.
func (f *farm) take(s farmStep) bool {
	if s.fault() {
		f.spent++
		f.lastFault = max(f.lastFault, f.now)
		f.note("*** %v", s)
		f.delayed(askAgain)
	}
	f.crash, f.crashed = s.crash, false
	f.takeStep(s)
	happened := s.crash < 0 || f.crashed
	f.crash, f.crashed = never, false
	f.check()
	return happened
}

func (f *farm) takeStep(s farmStep) {
	l := &f.links[s.link]
	x := (*server)(nil)
	if s.node <= hostB {
		x = &f.servers[s.node]
	}
	switch s.op {
	case farmStart:
		f.desk.epoch = f.row.epoch
		f.nextServer()
	case farmDeliver:
		f.deliver(s)
	case farmRestored:
		x.restoring = false
		f.takerStep(s.node, Event{Kind: Restored})
	case farmDelivered:
		x.delivering = false
		f.hand(s.node)
		f.takerStep(s.node, Event{Kind: Delivered})
	case farmConnect:
		l.connect()
		f.note("%v connects, link %d", s.node, s.link)
		if x != nil {
			waiting := x.waiting
			x.waiting = nil
			for _, fr := range waiting {
				f.request(s.node, fr)
			}
		}
	case farmDialFail:
		x.waiting = nil
	case farmTickGiver:
		f.giverStep(Event{Kind: Tick})
	case farmTickTaker:
		f.takerStep(s.node, Event{Kind: Tick})
	case farmRestart:
		x.up = true
		f.note("%v: agent is back", s.node)
	case farmTime:
		f.pass(s.long)
	case farmEnd:
		f.note("%v: has served the client", s.node)
		x.sock, x.inServer, f.served = sockNone, false, true
		f.ends--
	default:
		f.spoil(s)
	}
}

// pass lets time run to the next timer; late says that something could have happened meanwhile.
func (f *farm) pass(late bool) {
	at, ok := f.next()
	if !ok {
		return
	}
	if late {
		f.note("(late)")
		f.spent++
		f.lastFault = max(f.lastFault, at)
		f.delayed(at - f.now)
	}
	f.now = at
}

func (f *farm) deliver(s farmStep) {
	q, to, g := f.stream(s.link, s.stream)
	fr := q[0]
	f.note("%v <- %v: %v", to, f.far(s.link, to), fr)
	l := &f.links[s.link]
	switch rest := without(q, 0); {
	case s.stream < 2:
		l.queue[s.stream] = rest
	case len(rest) == 0:
		l.old = without(l.old, int(s.stream)-2)
	default:
		o := l.old[s.stream-2]
		o.queue = rest
		l.old = append(push(l.old[:s.stream-2], o), l.old[s.stream-1:]...)
	}
	if to == entryE {
		f.dispatcherHears(s.link, g, fr)
		return
	}
	f.agentHears(s.link, to, g, fr)
}

func (f *farm) spoil(s farmStep) {
	l := &f.links[s.link]
	x := (*server)(nil)
	if s.node <= hostB {
		x = &f.servers[s.node]
	}
	until := f.now + f.long()
	if s.long {
		f.lastFault = until
	}
	switch s.op {
	case farmKillAgent:
		if s.long {
			x.downUntil = until
		}
		f.killAgent(s.node, s.keep, s.how)
	case farmKillServer:
		x.sock, x.inServer, f.killed = sockNone, false, true
		f.tell("closed by " + s.node.String())
	case farmBreak:
		l.cut(s.keep)
		if s.long {
			l.healsAt = until
		}
	case farmNoKernel:
		x.restoring, x.sock = false, sockNone
		f.takerStep(s.node, Event{Kind: RestoreFailed, Err: errModel})
	case farmNoDelivery:
		x.delivering, x.sock = false, sockNone
		f.takerStep(s.node, Event{Kind: DeliveryFailed, Err: errModel})
	case farmOver:
		x.delivering, x.sock, x.over, f.killed = false, sockNone, true, true
		f.takerStep(s.node, Event{Kind: Over, Err: errModel})
	case farmMove:
		f.change(f.row.epoch, elsewhere)
		x.sock, x.inServer, f.moved = sockNone, false, true
	case farmNewFlow:
		f.foreign, f.row = true, row{known: true, owner: entryE, epoch: foreignEpoch}
	}
}
