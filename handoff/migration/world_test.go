// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// The model: two hosts, each with a kernel (socket and gate), an agent and an application, and the flow's entry. One
// connection of one client lives on host a at first. The code under test is the real Source, Target and Ledger;
// around them stands, in host_test.go, the smallest agent that carries their actions out, and in network_test.go what
// connects the hosts.
//
// Everything that can happen is a step (step_test.go). A search (explore_test.go) takes every step in every order; random
// runs (random_test.go) go further, with less order; the failure table (failures_test.go) takes one fault at a time.
// After every step the world is checked against the rules of doc.go (check).

// node is one of the three machines.
type node int8

const (
	hostA node = iota
	hostB
	entryE
)

func (n node) String() string { return [...]string{"a", "b", "entry"}[n] }

func (n node) other() node { return hostB - n }

// flowUnderTest is the one connection of the model.
var flowUnderTest = tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("192.0.2.7:40000"))

// origin is the model's time zero. Any will do that is not time.Time's zero.
var origin = time.Unix(1_000_000, 0)

// world is a state of everything. It is copied by assignment: slices and the ledger are never changed in place.
type world struct {
	cfg   Config
	rules rules
	harsh bool
	ahead bool
	large bool

	now   time.Duration // true time since origin
	skew  [3]int64      // per mille by which a node's clock is fast
	hosts [2]host
	entry entryHost
	links [3]link
	known [3]bool // nodes whose process is up

	nextID     uint8
	migrations int // still to be started
	faults     int // still allowed
	delays     int // times that time may pass while something could happen

	// What happened to the client, and what the outcome may be because of it.
	clientTold bool          // it was sent a RST or a FIN
	vanished   bool          // a frozen socket went with the last process that held it
	appKilled  bool          // an application was killed
	outage     bool          // the entry could not be asked for longer than the deadline
	toldBy     string        // who ended the connection, for the failure table
	slow       time.Duration // for how long a source has gone unanswered for no better reason than that
	unheard    time.Duration // the same of a target
	lastFault  time.Duration
	settled    time.Duration

	wake    time.Duration // a timer of the test's own, 0 for none
	crash   int8          // actions until the process that runs now dies; -1 is never
	crashed bool
	broken  string // the first rule found broken
	trace   *trace // nil unless somebody wants to read what happened
}

// rules weaken the model or the drivers on purpose: a checker that cannot find these has no worth.
type rules struct {
	recoverByQuery     bool // a new target agent asks who the owner is, without fencing off its predecessor's Commit
	recoverByCommit    bool // a new target agent commits, although its predecessor may have promised not to
	resumeOnPeerLost   bool // the source goes on without having aborted the lease
	thawBeforeAnswer   bool // the target goes on when it has asked, not when it was answered
	forgetAborted      bool // the entry grants a lease that arrives after its abort
	renewLease         bool // a doubled Lease counts from its own arrival
	shortHold          bool // the gate's hold ends before the lease
	holdDies           bool // the gate's hold is gone with its agent: what an agent that pins nothing does
	commitWithoutLease bool // the entry commits for whoever asks at the right epoch
}

// entryHost is the flow's entry: the owner table outlives the process, the ledger does not.
type entryHost struct {
	owner     Owner
	ledger    *Ledger
	downUntil time.Duration
}

// newWorld returns a world in which host a serves the connection and everything stands.
func newWorld(cfg Config) *world {
	w := &world{cfg: cfg.WithDefaults(), nextID: 1, migrations: 1, crash: -1, known: [3]bool{true, true, true}}
	w.entry = entryHost{owner: Owner{Host: "a", Epoch: 1}, ledger: &Ledger{}}
	w.hosts[hostA].app = app{alive: true, linked: true, phase: appServing, epoch: 1}
	w.hosts[hostA].sock = socket{state: sockLive, app: true}
	w.hosts[hostB].app = app{alive: true, linked: true}
	for h := range w.hosts {
		w.hosts[h].appLinked = true
	}
	w.links = [3]link{{lo: hostA, hi: hostB}, {lo: hostA, hi: entryE}, {lo: hostB, hi: entryE}}
	for i := range w.links {
		w.links[i].connect()
	}
	return w
}

// clock returns what n's clock shows.
func (w *world) clock(n node) time.Time {
	return origin.Add(w.now + w.now*time.Duration(w.skew[n])/1000)
}

// when returns the true time at which n's clock shows t.
func (w *world) when(n node, t time.Time) time.Duration {
	local := t.Sub(origin)
	passed := local * 1000 / time.Duration(1000+w.skew[n])
	for passed+passed*time.Duration(w.skew[n])/1000 < local {
		passed++
	}
	return passed
}

// fail notes that a rule is broken.
func (w *world) fail(format string, args ...any) {
	if w.broken == "" {
		w.broken = fmt.Sprintf(format, args...)
	}
}

// note adds a line to the trace.
func (w *world) note(format string, args ...any) {
	if w.trace != nil {
		w.trace.add(w.now, fmt.Sprintf(format, args...))
	}
}

// trace is what happened, for people.
type trace struct{ lines []string }

func (t *trace) add(now time.Duration, line string) {
	t.lines = append(t.lines, fmt.Sprintf("%8.3fs %s", now.Seconds(), line))
}

func (t *trace) String() string { return strings.Join(t.lines, "\n") }

// check tests the rules that hold at every instant.
func (w *world) check() {
	if w.broken != "" {
		return
	}
	a, b := w.hosts[hostA].sock.state, w.hosts[hostB].sock.state
	if a == sockLive && b == sockLive {
		w.fail("two live owners")
	}
	for h := hostA; h <= hostB; h++ {
		if w.hosts[h].sock.state == sockLive && w.entry.owner.Host != h.String() {
			w.fail("host %v is live while the entry names %v", h, w.entry.owner)
		}
	}
}

// changeOwner is the compare-and-set in the packet path.
func (w *world) changeOwner(from uint32, to node) bool {
	if w.entry.owner.Epoch != from {
		return false
	}
	old := &w.hosts[to.other()]
	if old.sock.state == sockFrozen && !old.hold {
		w.fail("the flow changed hands after host %v's hold had ended: its frozen socket may have acknowledged data", to.other())
	}
	w.entry.owner = Owner{Host: to.String(), Epoch: from + 1}
	w.note("entry: owner is %v", w.entry.owner)
	return true
}

// atRest tests the rules for the end, when nothing can happen any more.
func (w *world) atRest() {
	if w.broken != "" {
		return
	}
	serving := -1
	for h := hostA; h <= hostB; h++ {
		host := &w.hosts[h]
		switch {
		case host.hasSource || host.hasTarget:
			w.fail("host %v: a migration never ends", h)
		case host.sock.state == sockFrozen:
			w.fail("host %v: frozen for ever", h)
		case host.app.alive && host.app.phase != appIdle && host.app.phase != appServing:
			w.fail("host %v: the application waits for ever (%v)", h, host.app.phase)
		case host.sock.state == sockLive && (!host.app.alive || host.app.phase != appServing):
			w.fail("host %v: a live socket that nobody serves", h)
		case host.sock.state == sockLive:
			serving = int(h)
		}
	}
	excused := w.appKilled || w.outage
	switch {
	case w.clientTold && !excused:
		w.fail("the connection was ended though its owner lived and the entry could be asked")
	case !w.clientTold && serving < 0 && !excused:
		w.fail("nobody has the connection, and the client was not told")
	}
	if limit := w.cfg.Limit + w.cfg.Grace + 2*w.cfg.Retry; w.settled-w.lastFault > limit+limit/50 {
		w.fail("settled only %v after the last fault, want %v", w.settled-w.lastFault, limit)
	}
}

// serving returns the host whose application has the live connection.
func (w *world) serving() (node, bool) {
	for h := hostA; h <= hostB; h++ {
		if s := &w.hosts[h]; s.sock.state == sockLive && s.app.alive && s.app.phase == appServing && !w.clientTold {
			return h, true
		}
	}
	return 0, false
}

// withLedger runs f on a copy of the ledger, as other worlds may share it.
func (w *world) withLedger(f func(l *Ledger)) {
	l := cloneLedger(w.entry.ledger)
	f(l)
	w.entry.ledger = l
}

func cloneLedger(l *Ledger) *Ledger {
	c := &Ledger{ended: maps.Clone(l.ended)}
	if l.leases != nil {
		c.leases = make(map[tcprepair.Flow]*lease, len(l.leases))
		for f, g := range l.leases {
			copied := *g
			c.leases[f] = &copied
		}
	}
	for e := l.order.Front(); e != nil; e = e.Next() {
		c.order.PushBack(e.Value)
	}
	return c
}

// key appends everything that decides what can follow. Times are relative, so that states that differ only in when they
// came about are one.
func (w *world) key(b []byte) []byte {
	flags := func(v ...bool) {
		var x byte
		for i, f := range v {
			if f {
				x |= 1 << i
			}
		}
		b = append(b, x)
	}
	after := func(d time.Duration) { b = binary.AppendVarint(b, max(int64(d-w.now), -1)) }
	at := func(n node, t time.Time) {
		if t.IsZero() {
			b = append(b, 1)
			return
		}
		b = binary.AppendVarint(b, 4*max(int64(t.Sub(w.clock(n))), -1))
	}
	frames := func(q []frame) {
		b = append(b, byte(len(q)))
		for _, f := range q {
			b = append(b, byte(f.kind), f.id, byte(f.epoch), byte(f.owner.Epoch), f.generation)
			b = append(b, f.owner.Host...)
			flags(f.large, f.target)
		}
	}
	b = append(b, w.nextID, byte(w.migrations), byte(w.faults), byte(w.delays))
	flags(w.clientTold, w.vanished, w.appKilled, w.outage, w.known[0], w.known[1], w.known[2])
	for h := range w.hosts {
		x := &w.hosts[h]
		n := node(h)
		flags(x.sock.app, x.sock.agent, x.hold, x.hasSource, x.hasTarget, x.recovering, x.appLinked)
		flags(x.app.alive, x.app.linked, x.app.importer, x.app.orphan)
		b = append(b, byte(x.sock.state), byte(x.app.phase), x.app.id, byte(x.app.epoch), x.sourceID, x.targetID, x.targetGen)
		if x.hold {
			at(n, x.holdUntil)
		}
		after(x.downUntil)
		if x.hasSource {
			s := &x.source
			b = append(b, byte(s.state), byte(s.epoch))
			flags(s.accepted, s.leased, s.ahead)
			at(n, s.deadline)
			if s.state == SourceResolving {
				at(n, s.retry)
			}
		}
		if x.hasTarget {
			t := &x.target
			b = append(b, byte(t.state), byte(t.epoch))
			flags(t.alone)
			at(n, t.deadline)
			if t.state == TargetCommitting {
				at(n, t.retry)
			}
		}
		b = append(b, byte(len(x.local)))
		for _, e := range x.local {
			b = append(b, byte(e.kind), e.id)
		}
		frames(x.waiting)
		frames(x.toApp)
		frames(x.toAgent)
		b = append(b, x.seen...)
		b = append(b, 0)
	}
	b = append(b, byte(w.entry.owner.Epoch))
	b = append(b, w.entry.owner.Host...)
	after(w.entry.downUntil)
	b = binary.AppendVarint(b, int64(w.slow))
	b = binary.AppendVarint(b, int64(w.unheard))
	for _, g := range w.entry.ledger.leases {
		b = append(b, byte(g.id), byte(g.epoch))
		b = append(b, g.to...)
		at(entryE, g.until)
	}
	ended := slices.Sorted(maps.Keys(w.entry.ledger.ended))
	for _, id := range ended {
		b = append(b, byte(id))
	}
	for i := range w.links {
		l := &w.links[i]
		flags(l.up)
		b = append(b, l.generation, l.view[0], l.view[1], byte(len(l.old)))
		after(l.healsAt)
		frames(l.queue[0])
		frames(l.queue[1])
		for _, o := range l.old {
			b = append(b, byte(o.to))
			frames(o.queue)
		}
	}
	return b
}
