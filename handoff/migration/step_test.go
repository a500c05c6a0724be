// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// step is one thing that can happen next.
type step struct {
	op   op
	node node
	link int8
	// stream is the direction of a link's connection, or 2 and above for what is left of older ones; index is the
	// frame's place in it.
	stream, index int8
	// crash is after how many actions the receiving process dies, -1 for never.
	crash int8
	// keep says which frames of a dying connection are read all the same; long is an outage longer than any deadline.
	keep [2]bool
	long bool
}

type op uint8

const (
	opStart     op = iota // an operator starts a migration at node
	opDeliver             // a frame reaches its host
	opToApp               // a frame reaches the application
	opToAgent             // a frame reaches the agent
	opLocal               // the agent looks at an answer of its own kernel
	opWork                // the application finishes an export or import
	opAppLink             // the application finds the new agent
	opConnect             // a host connects to the entry
	opDialFail            // a host cannot connect to the entry
	opTick                // a machine's deadline is over
	opRestart             // a process comes back
	opTime                // nothing happens until the next timer
	opKillAgent           // fault: the agent dies, or the entry's
	opKillApp             // fault
	opBreak               // fault: a connection breaks
	opCancel              // fault: the operator aborts
	opRefuse              // fault: the application refuses to export or import
	opNoKernel            // fault: freeze or restore fails
	opLose                // fault of the harsh mode
	opDouble              // fault of the harsh mode
)

func (s step) String() string {
	names := [...]string{
		"start", "deliver", "to app", "to agent", "local", "work", "app connects", "connect", "dial fails", "tick", "restart", "time",
		"KILL agent", "KILL app", "BREAK", "CANCEL", "REFUSE", "KERNEL REFUSES", "LOSE", "DOUBLE",
	}
	t := fmt.Sprintf("%s %v", names[s.op], s.node)
	if s.crash >= 0 {
		t += fmt.Sprintf(" CRASH after %d", s.crash)
	}
	if s.long {
		t += " for long"
	}
	return t
}

const never = int8(-1)

// maxCrash is the largest number of actions in one step of a machine, and one.
const maxCrash = 7

// stream returns the frames, the sender and the receiver of one stream of a link.
func (w *world) stream(li, stream int8) (q []frame, from, to node, g uint8) {
	l := &w.links[li]
	switch stream {
	case 0:
		return l.queue[0], l.lo, l.hi, l.generation
	case 1:
		return l.queue[1], l.hi, l.lo, l.generation
	}
	o := l.old[stream-2]
	from = l.lo
	if o.to == l.lo {
		from = l.hi
	}
	return o.queue, from, o.to, o.generation
}

// free lists what can happen without a fault and without time passing.
func (w *world) free(out []step) []step {
	for h := hostA; h <= hostB; h++ {
		x := &w.hosts[h]
		if x.app.alive && len(x.toApp) > 0 {
			out = append(out, step{op: opToApp, node: h, crash: never})
		}
		if x.app.alive && (x.app.phase == appExporting || x.app.phase == appImporting) {
			out = append(out, step{op: opWork, node: h, crash: never})
		}
		if !w.known[h] {
			if w.now >= x.downUntil {
				out = append(out, step{op: opRestart, node: h, crash: never})
			}
			continue
		}
		if len(x.toAgent) > 0 {
			out = append(out, step{op: opToAgent, node: h, crash: never})
		}
		if len(x.local) > 0 {
			out = append(out, step{op: opLocal, node: h, crash: never})
		}
		if x.app.alive && !x.app.linked {
			out = append(out, step{op: opAppLink, node: h, crash: never})
		}
		for i, due := range w.due(h) {
			if due {
				out = append(out, step{op: opTick, node: h, index: int8(i), crash: never})
			}
		}
	}
	for i := range w.links {
		out = w.freeLink(int8(i), out)
	}
	if !w.known[entryE] && w.now >= w.entry.downUntil {
		out = append(out, step{op: opRestart, node: entryE, crash: never})
	}
	if w.migrations > 0 {
		for h := hostA; h <= hostB; h++ {
			if w.startable(h) {
				out = append(out, step{op: opStart, node: h, crash: never})
			}
		}
	}
	return out
}

func (w *world) freeLink(i int8, out []step) []step {
	l := &w.links[i]
	if l.hi == entryE && w.known[l.lo] && l.view[0] == 0 {
		switch {
		case w.connectable(l):
			out = append(out, step{op: opConnect, link: i, node: l.lo, crash: never})
		case len(w.hosts[l.lo].waiting) > 0 && !l.up && !w.known[entryE], len(w.hosts[l.lo].waiting) > 0 && w.now < l.healsAt:
			out = append(out, step{op: opDialFail, link: i, node: l.lo, crash: never})
		}
	}
	for s := int8(0); int(s) < 2+len(l.old); s++ {
		q, _, to, _ := w.stream(i, s)
		if len(q) == 0 || !w.known[to] {
			continue
		}
		last := 1
		if w.harsh {
			last = len(q)
		}
		for k := range last {
			if q[k].kind == frameLost && k > 0 {
				continue // the end of a connection comes last, whatever its frames do
			}
			out = append(out, step{op: opDeliver, link: i, stream: s, index: int8(k), node: to, crash: never})
		}
	}
	return out
}

// crashes lists the variants of a free step in which its process dies on the way.
func crashes(s step, out []step) []step {
	switch s.op {
	case opDeliver, opToAgent, opLocal, opTick, opStart:
		for k := range int8(maxCrash) {
			c := s
			c.crash = k
			out = append(out, c)
		}
	}
	return out
}

// spoiled lists what can go wrong now.
func (w *world) spoiled(out []step) []step {
	keeps := [][2]bool{{true, true}, {true, false}, {false, true}, {false, false}}
	for n := hostA; n <= entryE; n++ {
		if w.known[n] {
			for _, keep := range keeps {
				out = append(out, step{op: opKillAgent, node: n, keep: keep, crash: never})
			}
			out = append(out, step{op: opKillAgent, node: n, long: true, keep: keeps[0], crash: never})
		}
	}
	for h := hostA; h <= hostB; h++ {
		x := &w.hosts[h]
		if x.app.alive {
			out = append(out, step{op: opKillApp, node: h, crash: never})
			if x.app.phase == appExporting || x.app.phase == appImporting {
				out = append(out, step{op: opRefuse, node: h, crash: never})
			}
		}
		if x.hasSource {
			out = append(out, step{op: opCancel, node: h, crash: never})
		}
		if w.fresh(h) {
			out = append(out, step{op: opNoKernel, node: h, crash: never})
		}
	}
	for i := range w.links {
		if l := &w.links[i]; l.up {
			for _, keep := range keeps {
				out = append(out, step{op: opBreak, link: int8(i), keep: keep, crash: never})
			}
			out = append(out, step{op: opBreak, link: int8(i), long: true, crash: never})
		}
		if w.harsh {
			out = w.spoiledFrames(int8(i), out)
		}
	}
	return out
}

func (w *world) spoiledFrames(i int8, out []step) []step {
	for s := int8(0); int(s) < 2+len(w.links[i].old); s++ {
		q, _, to, _ := w.stream(i, s)
		for k := range q {
			if q[k].kind != frameLost {
				out = append(out, step{op: opLose, link: i, stream: s, index: int8(k), node: to, crash: never})
				if len(q) < 6 {
					out = append(out, step{op: opDouble, link: i, stream: s, index: int8(k), node: to, crash: never})
				}
			}
		}
	}
	return out
}

// fresh reports whether h's kernel has just frozen or restored, so that nothing can have come of it yet.
func (w *world) fresh(h node) bool {
	x := &w.hosts[h]
	if len(x.local) == 0 {
		return false
	}
	e, n := x.local[0], len(x.toApp)
	switch e.kind {
	case Frozen:
		return x.hasSource && x.sourceID == e.id && x.source.state == SourceFreezing
	case Restored:
		return x.hasTarget && x.targetID == e.id && x.target.state == TargetRestoring && n > 0 && x.toApp[n-1].kind == frameImport
	}
	return false
}

// startable reports whether an operator could move the connection away from h now.
func (w *world) startable(h node) bool {
	x := &w.hosts[h]
	l := w.link(hostA, hostB)
	return w.known[h] && x.appLinked && x.app.linked && x.app.phase == appServing && x.sock.state == sockLive && !w.clientTold &&
		!x.hasSource && !x.hasTarget && (l.view[l.side(h)] != 0 || w.connectable(l))
}

// due reports which of h's machines have a deadline that is over: source, target.
func (w *world) due(h node) [2]bool {
	x, now := &w.hosts[h], w.clock(h)
	over := func(on bool, t time.Time) bool { return on && !t.IsZero() && !t.After(now) }
	return [2]bool{over(x.hasSource, x.source.Deadline()), over(x.hasTarget, x.target.Deadline())}
}

// next returns when the next timer is over; false when there is none.
func (w *world) next() (time.Duration, bool) {
	var best time.Duration
	found := false
	add := func(on bool, at time.Duration) {
		if on && at > w.now && (!found || at < best) {
			best, found = at, true
		}
	}
	for h := hostA; h <= hostB; h++ {
		x := &w.hosts[h]
		timer := func(on bool, t time.Time) {
			if on && !t.IsZero() {
				add(true, w.when(h, t))
			}
		}
		if w.known[h] {
			if x.hasSource {
				timer(true, x.source.Deadline())
			}
			if x.hasTarget {
				timer(true, x.target.Deadline())
			}
		}
		timer(x.hold, x.holdUntil)
		add(!w.known[h], x.downUntil)
	}
	add(!w.known[entryE], w.entry.downUntil)
	add(w.wake > 0, w.wake)
	for i := range w.links {
		add(true, w.links[i].healsAt)
	}
	return best, found
}

// long is an outage that no deadline outlasts.
func (w *world) long() time.Duration { return 2*w.cfg.HoldTTL() + w.cfg.Retry/2 }

// take does s. It returns false when s cannot happen after all: a crash after more actions than there were.
func (w *world) take(s step) bool {
	if (s.op >= opKillAgent || s.crash >= 0) && w.resolving() {
		w.slow += w.cfg.Retry // it may take an answer along
		w.outage = w.outage || w.slow >= w.cfg.Grace-w.cfg.Retry
	}
	w.crash, w.crashed = s.crash, false
	w.takeStep(s)
	happened := s.crash < 0 || w.crashed
	if w.crashed {
		w.lastFault = max(w.lastFault, w.now)
	}
	w.crash, w.crashed = never, false
	w.check()
	return happened
}

func (w *world) takeStep(s step) {
	x := (*host)(nil)
	if s.node <= hostB {
		x = &w.hosts[s.node]
	}
	switch s.op {
	case opStart:
		w.start(s.node)
	case opDeliver:
		w.deliver(s)
	case opToApp:
		f := x.toApp[0]
		x.toApp = x.toApp[1:]
		w.appHears(s.node, f)
	case opToAgent:
		f := x.toAgent[0]
		x.toAgent = x.toAgent[1:]
		w.agentHears(s.node, f)
	case opLocal:
		e := x.local[0]
		x.local = x.local[1:]
		w.localStep(s.node, e)
	case opWork:
		w.appWorks(s.node, false)
	case opAppLink:
		w.appLinks(s.node)
	case opConnect:
		w.links[s.link].connect()
		waiting := x.waiting
		x.waiting = nil
		for _, f := range waiting {
			w.toEntry(s.node, f)
		}
	case opDialFail:
		x.waiting = nil
		w.entryLost(s.node)
	case opTick:
		w.tick(s)
	case opRestart:
		w.known[s.node] = true
		w.note("%v: agent is back", s.node)
	case opTime:
		w.pass(s.long)
	default:
		w.lastFault = max(w.lastFault, w.now)
		w.note("*** %v", s)
		w.fault(s)
	}
}

func (w *world) start(h node) {
	x := &w.hosts[h]
	l := w.link(hostA, hostB)
	if l.view[l.side(h)] == 0 {
		l.connect()
	}
	w.migrations--
	w.lastFault = max(w.lastFault, w.now) // what a move may take counts from here
	x.hasSource, x.sourceID, x.sourceGen = true, w.nextID, l.view[l.side(h)]
	w.nextID++
	x.source = *NewSource(SourceParams{Host: h.String(), Target: h.other().String(), Epoch: x.app.epoch, Ahead: w.ahead}, w.cfg)
	w.sourceStep(h, Event{Kind: Start})
}

func (w *world) deliver(s step) {
	q, from, to, g := w.stream(s.link, s.stream)
	f := q[s.index]
	w.replace(s, without(q, int(s.index)))
	w.note("%v <- %v: %v", to, from, f)
	if to == entryE {
		if f.kind == frameLost {
			if v := &w.links[s.link].view[1]; *v == f.generation {
				*v = 0
			}
			return
		}
		w.entryReceives(from, g, f)
		return
	}
	w.hostReceives(to, from, g, f)
}

// replace puts q in the place of a stream.
func (w *world) replace(s step, q []frame) {
	l := &w.links[s.link]
	if s.stream < 2 {
		l.queue[s.stream] = q
		return
	}
	i := int(s.stream) - 2
	old := without(l.old, i)
	if len(q) > 0 {
		o := l.old[i]
		o.queue = q
		old = append(append(append([]ended(nil), l.old[:i]...), o), l.old[i+1:]...)
	}
	l.old = old
}

func (w *world) localStep(h node, e localEvent) {
	x := &w.hosts[h]
	if x.hasSource && x.sourceID == e.id {
		w.sourceStep(h, Event{Kind: e.kind, Err: errModel})
	} else if x.hasTarget && x.targetID == e.id {
		w.targetStep(h, Event{Kind: e.kind, Err: errModel})
	}
}

func (w *world) tick(s step) {
	switch s.index {
	case 0:
		w.sourceStep(s.node, Event{Kind: Tick})
	case 1:
		w.targetStep(s.node, Event{Kind: Tick})
	}
}

// resolving reports whether a source waits for the entry's word.
func (w *world) resolving() bool {
	return w.hosts[hostA].hasSource && w.hosts[hostA].source.state == SourceResolving ||
		w.hosts[hostB].hasSource && w.hosts[hostB].source.state == SourceResolving
}

// committing reports whether a target does.
func (w *world) committing() bool {
	return w.hosts[hostA].hasTarget && w.hosts[hostA].target.state == TargetCommitting ||
		w.hosts[hostB].hasTarget && w.hosts[hostB].target.state == TargetCommitting
}

// pass lets time run to the next timer. What a kernel does then, it does at once. late says that something could have
// happened meanwhile: frames and processes are that slow. A source that nobody answers for Grace, less
// the one question that a failing dial may have taken along, may give up.
func (w *world) pass(late bool) {
	at, ok := w.next()
	if !ok {
		return
	}
	if late {
		w.note("(late)")
		w.lastFault = max(w.lastFault, at)
		if w.committing() {
			w.unheard += at - w.now
			w.outage = w.outage || w.unheard >= w.cfg.Orphan-w.cfg.Retry
		}
		if w.resolving() {
			w.slow += at - w.now
			w.outage = w.outage || w.slow >= w.cfg.Grace-w.cfg.Retry
		}
	}
	w.now = at
	for h := hostA; h <= hostB; h++ {
		x := &w.hosts[h]
		if x.hold && !x.holdUntil.After(w.clock(h)) {
			x.hold = false
			w.note("%v: the gate's hold ends", h)
		}
	}
}

func (w *world) fault(s step) {
	switch s.op {
	case opKillAgent:
		if s.long {
			until := w.now + w.long()
			w.lastFault = until
			if s.node == entryE {
				w.entry.downUntil, w.outage = until, true
			} else {
				w.hosts[s.node].downUntil = until
			}
		}
		w.killAgent(s.node, s.keep)
	case opKillApp:
		w.killApp(s.node)
	case opBreak:
		l := &w.links[s.link]
		l.cut(s.keep)
		if s.long {
			l.healsAt = w.now + w.long()
			w.lastFault = l.healsAt
			w.outage = w.outage || l.hi == entryE
		}
	case opCancel:
		w.sourceStep(s.node, Event{Kind: Canceled, Err: errModel})
	case opRefuse:
		w.appWorks(s.node, true)
	case opNoKernel:
		w.kernelRefuses(s.node)
	case opLose:
		q, _, _, _ := w.stream(s.link, s.stream)
		w.replace(s, without(q, int(s.index)))
	case opDouble:
		q, _, _, _ := w.stream(s.link, s.stream)
		// The end of a connection stays last.
		twice := append(append([]frame(nil), q[:s.index+1]...), q[s.index:]...)
		w.replace(s, twice)
	}
}

// kernelRefuses undoes a freeze or restore that was just done, as if it had failed.
func (w *world) kernelRefuses(h node) {
	x := &w.hosts[h]
	e := x.local[0]
	rest := x.local[1:]
	switch e.kind {
	case Frozen:
		x.sock.state, x.hold = sockLive, false
		e.kind = FreezeFailed
	case Restored:
		x.sock = socket{}
		x.toApp = x.toApp[:len(x.toApp)-1] // the Import that went with it
		e.kind = RestoreFailed
	}
	x.local = append([]localEvent{e}, rest...)
}

// killAgent ends a process of rehome. keep says whether what it had written last still goes out: to other hosts, and to
// its application.
func (w *world) killAgent(n node, keep [2]bool) {
	w.known[n] = false
	w.note("%v: agent dies", n)
	for i := range w.links {
		l := &w.links[i]
		if l.lo != n && l.hi != n {
			continue
		}
		l.cut([2]bool{keep[0] && l.lo == n, keep[0] && l.hi == n})
		l.forget(n)
	}
	if n == entryE {
		w.entry.ledger = &Ledger{}
		return
	}
	x := &w.hosts[n]
	x.hasSource, x.hasTarget, x.recovering = false, false, false
	x.source, x.target = Source{}, Target{}
	x.local, x.waiting, x.seen, x.toAgent = nil, nil, nil, nil
	if x.appLinked {
		if !keep[1] {
			x.toApp = nil
		}
		x.toApp = push(x.toApp, frame{kind: frameLost})
	}
	x.appLinked = false
	x.hold = x.hold && !w.rules.holdDies
	w.releaseDescriptor(n)
}

// killApp ends an application for good.
func (w *world) killApp(h node) {
	x := &w.hosts[h]
	w.appKilled = true
	x.app = app{}
	x.toApp = nil
	if x.appLinked {
		x.toAgent = push(x.toAgent, frame{kind: frameLost})
	}
	x.sock.app = false
	w.releaseIfUnheld(h)
}
