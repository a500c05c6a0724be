// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// restartTime is how long a process that was killed is away in docs/failures.md.
const restartTime = time.Second

// course is one straight move with one thing going wrong.
type course struct {
	w *world
	// stall is how long the client was without anybody who could answer.
	stall   time.Duration
	delayed struct {
		stream step
		frame  frame
		g      uint8
	}
}

func newCourse() *course {
	w := newWorld(Config{})
	w.ahead, w.large, w.harsh = true, true, true
	return &course{w: w}
}

// flowing reports whether the client's packets reach somebody who answers.
func (c *course) flowing() bool {
	w := c.w
	h, ok := w.serving()
	return ok && w.entry.owner.Host == h.String() && !w.hosts[h].hold
}

// next takes the first thing that can happen; false at the end.
func (c *course) next() bool {
	w := c.w
	if w.wake > 0 && w.now >= w.wake {
		w.wake = 0
		d := c.delayed
		if l := &w.links[d.stream.link]; l.up && l.generation == d.g {
			q, _, _, _ := w.stream(d.stream.link, d.stream.stream)
			w.replace(d.stream, push(q, d.frame))
		}
		w.lastFault = w.now
	}
	if free := w.free(nil); len(free) > 0 {
		w.take(c.first(free))
		return true
	}
	if _, ok := w.next(); !ok {
		return false
	}
	before, flowing := w.now, c.flowing()
	w.take(step{op: opTime, crash: never})
	if !flowing && !w.clientTold {
		c.stall += w.now - before
	}
	return true
}

// first returns what happens first: the end of a connection is seen at once, frames and work take their time.
func (c *course) first(free []step) step {
	for _, s := range free {
		if s.op != opDeliver {
			continue
		}
		if q, _, _, _ := c.w.stream(s.link, s.stream); q[s.index].kind == frameLost {
			return s
		}
	}
	for _, s := range free {
		if s.op == opToAgent {
			if x := &c.w.hosts[s.node]; x.toAgent[0].kind == frameLost {
				return s
			}
		}
	}
	return free[0]
}

// finish goes on to the end.
func (c *course) finish(t *testing.T) {
	t.Helper()
	for range maxSteps {
		if !c.next() {
			c.w.atRest()
			return
		}
	}
	t.Fatal("no end")
}

// outcome says in words what the client had of it.
func (c *course) outcome() string {
	w := c.w
	h, served := w.serving()
	var s string
	switch {
	case w.broken != "":
		return "BROKEN: " + w.broken
	case served && h == hostA:
		s = "stays"
	case served:
		s = "moves"
	case w.clientTold:
		s = "ends"
	default:
		s = "is gone"
	}
	if c.stall > 0 && (served || w.clientTold) {
		s += fmt.Sprintf(", stalls %.1f s", c.stall.Seconds())
	}
	return s
}

// moment is a point of the straight move: a frame is under way, for the nth time, or a kernel call has just been made.
type moment struct {
	name  string
	frame frameKind
	nth   int
	event EventKind
}

// moments are in the order of the move.
func moments() []moment {
	return []moment{
		{name: "Offer is under way", frame: frameOffer},
		{name: "Lease", frame: frameLease},
		{name: "Accept", frame: frameAccept},
		{name: "Leased", frame: frameLeased},
		{name: "Prepare", frame: framePrepare},
		{name: "Prepared", frame: framePrepared},
		{name: "StateSent (ahead)", frame: frameStateSent},
		{name: "StateStored (ahead)", frame: frameStateStored},
		{name: "Export", frame: frameExport},
		{name: "Exported", frame: frameExported},
		{name: "StateSent (large State)", frame: frameStateSent, nth: 1},
		{name: "StateStored (large State)", frame: frameStateStored, nth: 1},
		{name: "the socket is frozen", event: Frozen},
		{name: "Transfer", frame: frameTransfer},
		{name: "the socket is restored", event: Restored},
		{name: "Import", frame: frameImport},
		{name: "Imported", frame: frameImported},
		{name: "Commit", frame: frameCommit},
		{name: "Owner", frame: frameOwner},
		{name: "Activate; the target is live", frame: frameActivate},
		{name: "Committed", frame: frameCommitted},
		{name: "Migrated; the source is gone", frame: frameMigrated},
		{name: "Held", frame: frameHeld},
	}
}

// until goes on to m, and returns where its frame is if it goes between hosts.
func (c *course) until(t *testing.T, m moment) (step, bool) {
	t.Helper()
	seen, times := false, 0
	for range maxSteps {
		at, between, here := c.find(m)
		if here && !seen {
			if times == m.nth {
				return at, between
			}
			times++
		}
		seen = here
		if !c.next() {
			break
		}
	}
	t.Fatalf("the straight move has no moment %q", m.name)
	return step{}, false
}

func (c *course) find(m moment) (at step, between, here bool) {
	w := c.w
	is := func(f frame) bool { return m.frame != 0 && f.kind == m.frame }
	for i := range w.links {
		for s := range int8(2) {
			q, _, to, _ := w.stream(int8(i), s)
			if k := slices.IndexFunc(q, is); k >= 0 {
				return step{link: int8(i), stream: s, index: int8(k), node: to, crash: never}, true, true
			}
		}
	}
	for h := range w.hosts {
		x := &w.hosts[h]
		local := func(e localEvent) bool { return m.event != 0 && e.kind == m.event }
		if slices.ContainsFunc(x.toApp, is) || slices.ContainsFunc(x.toAgent, is) || slices.ContainsFunc(x.local, local) {
			return step{}, false, true
		}
	}
	return step{}, false, false
}

// kill ends a process for restartTime.
func (c *course) kill(n node) {
	w := c.w
	w.take(step{op: opKillAgent, node: n, keep: [2]bool{true, true}, crash: never})
	c.away(n)
}

func (c *course) away(n node) {
	until := c.w.now + restartTime
	if n == entryE {
		c.w.entry.downUntil = until
	} else {
		c.w.hosts[n].downUntil = until
	}
}

// killBoth ends the application and the agent of a host.
func (c *course) killBoth(n node) {
	c.w.take(step{op: opKillApp, node: n, crash: never})
	c.kill(n)
}

// delay takes the frame at s out and puts it back later.
func (c *course) delay(s step, d time.Duration) {
	w := c.w
	q, _, _, g := w.stream(s.link, s.stream)
	c.delayed.stream, c.delayed.frame, c.delayed.g = s, q[s.index], g
	w.replace(s, without(q, int(s.index)))
	w.wake = w.now + d
}

// TestFailures writes docs/failures.md, or checks that it is still true.
func TestFailures(t *testing.T) {
	var b strings.Builder
	b.WriteString(failuresHead)
	killTable(t, &b)
	crashTable(t, &b)
	frameTable(t, &b)
	outageTable(t, &b)
	handoffTables(t, &b)
	golden(t, "../../docs/failures.md", b.String())
}

const failuresHead = `# What happens where

What a client has of it when something fails during a live migration from one server (the source) to another (the target).
This file is written by a test from a simulation with the real state machines: ` + "`go test ./handoff/migration -run TestFailures -update`" + `.
The test fails when the tables are not true any more. What happens to a whole process stands in [process-migration.md](process-migration.md#when-something-fails).

In every cell the client's connection

- **moves**: it goes on at the target, as if nothing had happened;
- **stays**: it goes on at the source, as if nothing had happened, and the operator is told why it did not move;
- **ends**: the client gets a RST or FIN. This happens only when the application that has the connection, or has just taken it
  over, is killed, as without a migration, or when the entry cannot be asked until the deadline;
- **is gone**: the processes that had the frozen socket were killed. The kernel says nothing then; the next packet that the
  client sends is answered with a RST.

*Stalls* is how long nobody can answer the client; without it the time is that of the move itself, around a millisecond.
The client's packets are held meanwhile, within the gate's bounds; past these, and when the agent that holds them is killed, the
client's TCP sends them again. The tables are those of hosts that pin the gate's state (` + "`gate.pin`" + `): without it a frozen socket
is unprotected as soon as its agent is killed, and data can be lost. Times are those of the default configuration: the
move may take 10 s, the source then asks the entry for 3 s. A killed agent, or entry, is back after 1 s. Frames of a killed process that
were under way arrive all the same; what happens when they do not, and every other order of events, is searched by
TestEveryOrder and TestRandomRuns, which know no outcome but these.

The move is one with everything in it: State sent ahead, and more State that is too large for the freeze. Until Export the
application serves the connection.
`

type column struct {
	name  string
	spoil func(c *course, s step)
}

func killTable(t *testing.T, b *strings.Builder) {
	t.Helper()
	killers := []column{
		{"source application", func(c *course, _ step) { c.w.take(step{op: opKillApp, node: hostA, crash: never}) }},
		{"source agent", func(c *course, _ step) { c.kill(hostA) }},
		{"target application", func(c *course, _ step) { c.w.take(step{op: opKillApp, node: hostB, crash: never}) }},
		{"target agent", func(c *course, _ step) { c.kill(hostB) }},
		{"entry", func(c *course, _ step) { c.kill(entryE) }},
		{"both at the source", func(c *course, _ step) { c.killBoth(hostA) }},
		{"both at the target", func(c *course, _ step) { c.killBoth(hostB) }},
	}
	b.WriteString("\n## A process is killed\n\n")
	table(b, "while", killers)
	for _, m := range moments() {
		fmt.Fprintf(b, "| %s |", m.name)
		for _, k := range killers {
			c := newCourse()
			s, _ := c.until(t, m)
			k.spoil(c, s)
			c.finish(t)
			c.sane(t, m.name+", "+k.name+" killed")
			fmt.Fprintf(b, " %s |", c.outcome())
		}
		b.WriteString("\n")
	}
}

func frameTable(t *testing.T, b *strings.Builder) {
	t.Helper()
	spoilers := []column{
		{"lost", func(c *course, s step) { s.op = opLose; c.w.take(s) }},
		{"doubled", func(c *course, s step) { s.op = opDouble; c.w.take(s) }},
		{"1 s late", func(c *course, s step) { c.delay(s, time.Second) }},
		{"12 s late", func(c *course, s step) { c.delay(s, 12*time.Second) }},
		{"lost with its connection", func(c *course, s step) {
			c.w.take(step{op: opBreak, link: s.link, crash: never})
		}},
	}
	b.WriteString("\n## A frame is lost, doubled or late\n\n")
	b.WriteString("The connections between agents neither lose nor double frames; the protocol does not depend on it.\n\n")
	table(b, "frame", spoilers)
	for _, m := range moments() {
		c := newCourse()
		if _, between := c.until(t, m); !between {
			continue
		}
		fmt.Fprintf(b, "| %s |", strings.TrimSuffix(m.name, " is under way"))
		for _, k := range spoilers {
			c := newCourse()
			s, _ := c.until(t, m)
			k.spoil(c, s)
			c.finish(t)
			c.sane(t, m.name+" "+k.name)
			fmt.Fprintf(b, " %s |", c.outcome())
		}
		b.WriteString("\n")
	}
}

// crashTable kills each process between two actions of one step.
func crashTable(t *testing.T, b *strings.Builder) {
	t.Helper()
	b.WriteString("\n## A process is killed in the middle of a step\n\n")
	b.WriteString("Some steps are several actions. These are all the places between two of them.\n\n")
	b.WriteString("| process | dies after | before | the connection |\n|---|---|---|---|\n")
	c := newCourse()
	for range maxSteps {
		free := c.w.free(nil)
		if len(free) == 0 {
			if !c.next() {
				return
			}
			continue
		}
		whole := acts(c.w, c.first(free))
		for k := 1; k < len(whole); k++ {
			w := *c.w
			s := c.first(free)
			s.crash = int8(k)
			if !w.take(s) {
				continue
			}
			d := &course{w: &w, stall: c.stall}
			d.away(s.node)
			d.finish(t)
			role := [...]string{"source agent", "target agent", "entry"}[s.node]
			d.sane(t, role+" between "+whole[k-1]+" and "+whole[k])
			fmt.Fprintf(b, "| %s | %s | %s | %s |\n", role, whole[k-1], whole[k], d.outcome())
		}
		c.next()
	}
}

// acts returns what the receiving process does in s.
func acts(before *world, s step) []string {
	w := *before
	w.trace = &trace{}
	w.take(s)
	var out []string
	for _, l := range w.trace.lines {
		text := l[10:]
		name, rest, _ := strings.Cut(text, ": ")
		if name != s.node.String() && s.node != entryE {
			continue
		}
		if s.node == entryE {
			if strings.HasPrefix(text, "entry: owner is") {
				out = append(out, "the owner is changed", "the lease is ended")
			}
			continue
		}
		if isVerb(rest) {
			out = append(out, rest)
		}
	}
	if len(out) == 2 && s.node == entryE {
		out[1] = "the answer is sent"
	}
	return out
}

func isVerb(s string) bool {
	for v := SendOffer; v <= Finish; v++ {
		if v.String() == s {
			return true
		}
	}
	return false
}

// outageTable has what outlasts every deadline.
func outageTable(t *testing.T, b *strings.Builder) {
	t.Helper()
	long := func(n node) func(*course, step) {
		return func(c *course, _ step) {
			c.w.take(step{op: opKillAgent, node: n, long: true, keep: [2]bool{true, true}, crash: never})
		}
	}
	cut := func(x, y node) func(*course, step) {
		return func(c *course, _ step) {
			for i := range c.w.links {
				if l := &c.w.links[i]; l == c.w.link(x, y) {
					c.w.take(step{op: opBreak, link: int8(i), long: true, crash: never})
				}
			}
		}
	}
	away := []column{
		{"source agent is away", long(hostA)},
		{"target agent is away", long(hostB)},
		{"entry is away", long(entryE)},
		{"source and target are cut off from one another", cut(hostA, hostB)},
		{"source is cut off from the entry", cut(hostA, entryE)},
		{"target is cut off from the entry", cut(hostB, entryE)},
	}
	fmt.Fprintf(b, "\n## An outage longer than every deadline\n\nHere %.1f s. It begins while\n\n", newWorld(Config{}).long().Seconds())
	table(b, "while", away)
	for _, m := range moments() {
		if m.frame == frameOffer || m.frame == framePrepare || m.frame == framePrepared {
			continue
		}
		fmt.Fprintf(b, "| %s |", m.name)
		for _, k := range away {
			c := newCourse()
			s, _ := c.until(t, m)
			k.spoil(c, s)
			c.finish(t)
			if c.w.broken != "" {
				t.Errorf("%s, %s: %s", m.name, k.name, c.w.broken)
			}
			fmt.Fprintf(b, " %s |", c.outcome())
		}
		b.WriteString("\n")
	}
}

func table(b *strings.Builder, first string, columns []column) {
	fmt.Fprintf(b, "| %s |", first)
	for _, c := range columns {
		fmt.Fprintf(b, " %s |", c.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
}

// sane checks what no golden file may excuse.
func (c *course) sane(t *testing.T, what string) {
	t.Helper()
	w := c.w
	if w.broken != "" {
		t.Errorf("%s: %s", what, w.broken)
	}
	if _, ok := w.serving(); !ok && !w.appKilled {
		t.Errorf("%s: nobody serves the connection though no application was killed", what)
	}
	if limit := w.cfg.HoldTTL() + restartTime; c.stall > limit {
		t.Errorf("%s: the client waits %v, want at most %v", what, c.stall, limit)
	}
}
