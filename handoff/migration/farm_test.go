// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The second model: a dispatcher that has accepted one connection, and two servers that it tries one after the other, never one
// twice. The code under test is the real Giver and Taker; around them stands, in farm_dispatcher_test.go and farm_server_test.go,
// the smallest dispatcher and agent that carry their actions out. Links, frames and nodes are those of the first model: entryE is
// the dispatcher, hostA and hostB are the servers.
//
// Everything that can happen is a step (farm_step_test.go), which a search takes in every order and random runs at
// random (farm_explore_test.go). After every step the farm is checked.
//
// The dispatcher itself does not die here: its frozen socket goes with it, and nothing that a state machine does can change that.

// farm is a state of everything. It is copied by assignment: slices are never changed in place.
type farm struct {
	cfg          Config
	limit, grace time.Duration
	rules        farmRules
	atOnce       [2]bool // to which servers the flow is granted before they ask

	now     time.Duration
	row     row
	desk    desk
	servers [2]server
	links   [4]link // the dispatcher's to each server, then each server's to the dispatcher

	faults, delays int // still allowed
	ends           int // times that a server may finish with the connection
	spent          int // faults and delays that have happened

	// What the client had of it, and what the outcome may be because of it.
	told      string        // who reset the connection, or closed it too early
	served    bool          // a server has answered, and the connection came to its proper end
	moved     bool          // a third server has it by live migration, in which the dispatcher only keeps the table
	foreign   bool          // the client has given the connection up: the flow in the table is another one
	killed    bool          // the server's process was killed, or its agent with a live connection in its hands
	outage    bool          // a server could not be asked for longer than the deadline
	robbed    bool          // it was reset while a server had it: may be only in an outage
	slow      time.Duration // for how long the giver has gone unanswered for no better reason than that
	lastFault time.Duration
	settled   time.Duration
	crash     int8 // actions until the agent that works now dies; -1 is never
	crashed   bool
	broken    string
	trace     *trace
}

// farmRules weaken the model or the drivers on purpose.
type farmRules struct {
	deliverBeforeAnswer bool // a taker gives the connection to the server when it has asked
	grantAnyone         bool // the dispatcher grants a Commit of an attempt that it has given up
	backOnPeerLost      bool // it goes on to the next server when it has lost one that was granted the flow
	hastyAbsent         bool // an agent looks for the socket while its taker has not finished
	forgetful           bool // an agent that has finished with a handoff looks for the socket, which may have come to its end
	takeBackBlindly     bool // the dispatcher goes on when the table did not let it take the flow back
	forgetBlindly       bool // it takes the flow of a connection that it has lost out of the table, whoever's the flow is now
	releaseEarly        bool // it lets the client's packets go when it grants the flow
	noReset             bool // an unresolved connection is dropped in silence
	unfenced            bool // an agent that has answered Absent takes a handoff which arrives later
	lostUnsent          bool // the dispatcher does not keep an attempt whose connection it could not send
}

// row is the flow's entry in the flow table. It outlives every process.
type row struct {
	known bool
	owner node
	epoch uint32
}

func (r row) String() string {
	if !r.known {
		return "unknown"
	}
	return Owner{Host: hostName(r.owner), Epoch: r.epoch}.String()
}

// elsewhere is a server that no attempt is for.
const elsewhere = entryE + 1

func hostName(n node) string {
	if n == elsewhere {
		return "c"
	}
	return n.String()
}

// The dispatcher's link to a server, and the server's link to the dispatcher.
func toServer(n node) int8     { return int8(n) }
func toDispatcher(n node) int8 { return int8(n) + 2 }

// newFarm returns a farm in which the dispatcher has the first request, and every link stands.
func newFarm(cfg Config, limit, grace time.Duration) *farm {
	f := &farm{cfg: cfg.WithDefaults(), limit: limit, grace: grace, crash: never}
	f.row = row{known: true, owner: entryE, epoch: 1}
	f.desk.sock = sockFrozen
	for i := range f.links {
		f.links[i].lo, f.links[i].hi = node(i%2), entryE
		f.links[i].connect()
	}
	for h := range f.servers {
		f.servers[h].up = true
	}
	return f
}

// fastTimes have few timers: everything is a multiple of the time between two questions.
func fastTimes() Config { return Config{Limit: 4 * askAgain, Grace: 4 * askAgain, Retry: askAgain} }

func newFastFarm() *farm { return newFarm(fastTimes(), 4*askAgain, 6*askAgain) }

func (f *farm) clock() time.Time { return origin.Add(f.now) }

func (f *farm) fail(format string, args ...any) {
	if f.broken == "" {
		f.broken = fmt.Sprintf(format, args...)
	}
}

func (f *farm) note(format string, args ...any) {
	if f.trace != nil {
		f.trace.add(f.now, fmt.Sprintf(format, args...))
	}
}

// tell notes that the client learns of the connection's end before its time.
func (f *farm) tell(by string) {
	if f.told == "" {
		f.told = by
		f.note("client: %s", by)
	}
}

// change is the compare-and-set in the packet path.
func (f *farm) change(from uint32, to node) bool {
	if !f.row.known || f.row.epoch != from {
		return false
	}
	f.row.owner, f.row.epoch = to, from+1
	f.note("flow table: %v", f.row)
	return true
}

// send puts fr on connection g of a link. What goes to a connection that is over is lost.
func (f *farm) send(li int8, from node, g uint8, fr frame) {
	l := &f.links[li]
	f.note("%v -> %v: %v", from, f.far(li, from), fr)
	if l.up && g != 0 && g == l.generation {
		q := &l.queue[l.side(from)]
		*q = push(*q, fr)
	}
}

func (f *farm) far(li int8, n node) node {
	if n == entryE {
		return f.links[li].lo
	}
	return entryE
}

// examineStep checks what every step of a machine must keep.
func (f *farm) examineStep(who string, e Event, after time.Time, final, good bool, actions []Action) {
	for i, a := range actions {
		if a.Verb == Finish && (i != len(actions)-1 || !final || good != (a.Err == nil)) {
			f.fail("%s: %v: actions after Finish, or a Finish that does not fit", who, e.Kind)
		}
	}
	switch {
	case final && !after.IsZero():
		f.fail("%s: a deadline after the end", who)
	case !final && e.Kind == Tick && !after.IsZero() && !after.After(f.clock()):
		f.fail("%s: a tick left a deadline that has passed", who)
	}
}

// check tests the rules that hold at every instant.
func (f *farm) check() {
	if f.broken != "" {
		return
	}
	live := 0
	if f.desk.sock == sockLive {
		live++
	}
	if f.moved {
		live++
	}
	if f.moved && f.row.owner != elsewhere && f.told == "" && !f.foreign {
		f.fail("the connection has moved on while the flow table has %v", f.row)
	}
	for h := hostA; h <= hostB; h++ {
		s := &f.servers[h]
		if s.sock != sockLive {
			continue
		}
		live++
		if f.row.owner != h && f.told == "" && !f.foreign {
			f.fail("server %v is live while the flow table has %v", h, f.row)
		}
	}
	if live > 1 && f.told == "" {
		f.fail("two live owners")
	}
	if f.servers[hostA].had && f.servers[hostB].had && f.told == "" {
		f.fail("two servers have had the connection")
	}
	if f.served && f.desk.sock == sockLive {
		f.fail("the dispatcher answers a connection that a server has answered")
	}
	if f.robbed && !f.outage {
		f.fail("reset while a server had it")
	}
}

// atRest tests the rules for the end, when nothing can happen any more.
func (f *farm) atRest() {
	if f.broken != "" {
		return
	}
	holders := 0
	for h := hostA; h <= hostB; h++ {
		s := &f.servers[h]
		switch {
		case s.has:
			f.fail("server %v: a taker never ends", h)
		case s.sock == sockFrozen:
			f.fail("server %v: frozen for ever", h)
		case s.sock == sockLive && !s.inServer:
			f.fail("server %v: a live socket that nobody serves", h)
		case s.sock == sockLive:
			holders++
		}
	}
	d := &f.desk
	switch {
	case d.has || !d.over:
		f.fail("an attempt never ends")
	case d.sock == sockFrozen:
		f.fail("the dispatcher's socket is frozen for ever")
	case d.sock == sockLive: // it has answered
		holders++
	}
	if f.served || f.moved {
		holders++
	}
	switch {
	case f.foreign:
		if f.row.owner != entryE || f.row.epoch != foreignEpoch {
			f.fail("the client's new flow became %v", f.row)
		}
	case f.told != "" && !f.outage && !f.killed:
		f.fail("the client was reset though everybody could be asked")
	case f.told == "" && holders != 1:
		f.fail("%d have the connection, and the client was not told", holders)
	case d.sock == sockLive && f.spent < 2:
		f.fail("nobody took the connection though only one server failed")
	}
	if limit := 2*(f.limit+f.grace) + 2*f.cfg.Retry; f.settled-f.lastFault > limit {
		f.fail("settled only %v after the last fault, want %v", f.settled-f.lastFault, limit)
	}
}

// key appends everything that decides what can follow.
func (f *farm) key(b []byte) []byte {
	flags := func(v ...bool) {
		var x byte
		for i, on := range v {
			if on {
				x |= 1 << i
			}
		}
		b = append(b, x)
	}
	after := func(d time.Duration) { b = binary.AppendVarint(b, max(int64(d-f.now), -1)) }
	at := func(t time.Time) {
		if t.IsZero() {
			b = append(b, 1)
			return
		}
		b = binary.AppendVarint(b, 4*max(int64(t.Sub(f.clock())), -1))
	}
	frames := func(q []frame) {
		b = append(b, byte(len(q)))
		for _, fr := range q {
			b = append(b, byte(fr.kind), fr.id, byte(fr.epoch), byte(fr.owner.Epoch), fr.generation, byte(len(fr.owner.Host)))
			b = append(b, fr.owner.Host...)
			flags(fr.present, fr.granted, fr.owner.Unknown)
		}
	}
	d := &f.desk
	b = append(b, byte(f.faults), byte(f.delays), byte(f.ends), byte(min(f.spent, 2)), byte(f.row.owner), byte(f.row.epoch))
	flags(f.row.known, f.told != "", f.served, f.foreign, f.killed, f.outage, f.robbed)
	flags(f.moved, d.has, d.over, d.gone, d.unknown)
	b = binary.AppendVarint(b, int64(f.slow))
	b = append(b, byte(d.sock), byte(d.epoch), byte(d.tried), d.id, byte(d.to), byte(d.at))
	if d.has {
		b = append(b, byte(d.giver.state))
		at(d.giver.deadline)
		if d.giver.state == GiverAsking {
			at(d.giver.retry)
		}
	}
	for h := range f.servers {
		s := &f.servers[h]
		flags(s.up, s.has, s.asked, s.restoring, s.delivering, s.inServer, s.had, s.over)
		b = append(b, byte(s.sock), byte(s.outcome), s.id, s.from, s.fenced)
		after(s.downUntil)
		if s.has {
			b = append(b, byte(s.taker.state), byte(s.taker.epoch))
			at(s.taker.deadline)
			if s.taker.state <= TakerRestoring {
				at(s.taker.until)
			}
			if s.taker.state == TakerAsking {
				at(s.taker.retry)
			}
		}
		frames(s.waiting)
	}
	for i := range f.links {
		l := &f.links[i]
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
