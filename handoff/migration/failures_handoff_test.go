// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// farmCourse is one straight handoff with one thing going wrong.
type farmCourse struct {
	f *farm
	// stall is how long the client was without anybody who could answer.
	stall time.Duration
}

// newFarmCourse returns one with the dispatcher's default times.
func newFarmCourse(atOnce bool) *farmCourse {
	f := newFarm(Config{}, time.Second, 3*time.Second)
	f.atOnce = [2]bool{atOnce, atOnce}
	return &farmCourse{f: f}
}

// next takes the first thing that can happen; false at the end.
func (c *farmCourse) next() bool {
	f := c.f
	if free := f.free(nil); len(free) > 0 {
		f.take(c.first(free))
		return true
	}
	if _, ok := f.next(); !ok {
		return false
	}
	before, waits := f.now, !f.desk.over
	f.take(farmStep{op: farmTime, crash: never})
	if waits {
		c.stall += f.now - before
	}
	return true
}

// first returns what happens first: the end of a connection is seen at once, frames take their time.
func (c *farmCourse) first(free []farmStep) farmStep {
	lost := slices.IndexFunc(free, func(s farmStep) bool {
		if s.op != farmDeliver {
			return false
		}
		q, _, _ := c.f.stream(s.link, s.stream)
		return q[0].kind == frameLost
	})
	return free[max(lost, 0)]
}

func (c *farmCourse) finish(t *testing.T) {
	t.Helper()
	for range maxSteps {
		if !c.next() {
			c.f.atRest()
			return
		}
	}
	t.Fatal("no end")
}

// outcome says in words what the client had of it.
func (c *farmCourse) outcome() string {
	f := c.f
	var s string
	switch {
	case f.broken != "":
		return "BROKEN: " + f.broken
	case f.told != "":
		s = "ends"
	case f.servers[hostA].sock == sockLive:
		s = "first"
	case f.servers[hostB].sock == sockLive:
		s = "next"
	case f.desk.sock == sockLive:
		s = "is answered"
	default:
		return "BROKEN: nobody has it"
	}
	if c.stall > 0 {
		s += fmt.Sprintf(", stalls %.1f s", c.stall.Seconds())
	}
	return s
}

// farmMoment is a point of the straight handoff: a frame is under way, or at says that it is here.
type farmMoment struct {
	name  string
	frame frameKind
	at    func(*server) bool
	how   int8 // see killAgent
}

func farmMoments(atOnce bool) []farmMoment {
	delivering := func(s *server) bool { return s.delivering }
	all := []farmMoment{
		{name: "Handoff is under way", frame: frameHandoff},
		{name: "the socket is restored", at: func(s *server) bool { return s.restoring }},
		{name: "Commit", frame: frameCommit},
		{name: "Owner", frame: frameOwner},
		{name: "delivery, before the socket is live", at: delivering},
		{name: "delivery, the socket is live", at: delivering, how: 1},
		{name: "delivery, the server has the socket", at: delivering, how: 2},
		{name: "Committed", frame: frameCommitted},
	}
	return slices.DeleteFunc(all, func(m farmMoment) bool { return atOnce && (m.frame == frameCommit || m.frame == frameOwner) })
}

// until goes on to m.
func (c *farmCourse) until(t *testing.T, m farmMoment) {
	t.Helper()
	for range maxSteps {
		if m.at != nil && m.at(&c.f.servers[hostA]) {
			return
		}
		for i := range c.f.links {
			for _, q := range c.f.links[i].queue {
				if slices.ContainsFunc(q, func(fr frame) bool { return m.frame != 0 && fr.kind == m.frame }) {
					return
				}
			}
		}
		if !c.next() {
			break
		}
	}
	t.Fatalf("the straight handoff has no moment %q", m.name)
}

type farmColumn struct {
	name  string
	spoil func(c *farmCourse, m farmMoment)
}

const handoffHead = `
# A handoff

What a client has of it when something fails while a dispatcher hands its connection to a server: to the first of two, in the columns.
Until the server has it, the dispatcher has the connection and holds the client's packets.

- **first**: the first server has it, as if nothing had happened;
- **next**: the dispatcher has it back and gives it to the next server. When that fails, too, the dispatcher answers itself (HTTP 503, a
  TLS alert, or a RST);
- **ends**: the client gets a RST or FIN: when the process that has the live connection is killed, as without a handoff, or when the
  server's host was granted the flow and cannot be asked, for 3 s, what became of it.

Times are those of the default configuration: an attempt may take 1 s, and a server that was granted the flow is asked for 3 s more. A
killed agent is back after 1 s, an outage lasts %.0f s. Every other order of events, with up to three faults, is searched by
TestEveryHandoff and TestRandomHandoffs, which know no outcome but these.
`

func handoffTables(t *testing.T, b *strings.Builder) {
	t.Helper()
	kill := func(c *farmCourse, m farmMoment) {
		c.f.take(farmStep{op: farmKillAgent, node: hostA, keep: [2]bool{true, true}, how: m.how, crash: never})
		c.f.servers[hostA].downUntil = c.f.now + restartTime
	}
	cut := func(li int8, long bool) func(*farmCourse, farmMoment) {
		return func(c *farmCourse, _ farmMoment) {
			c.f.take(farmStep{op: farmBreak, link: li, long: long, crash: never})
		}
	}
	columns := []farmColumn{
		{"its agent is killed", kill},
		{"agent and server are killed", func(c *farmCourse, m farmMoment) {
			kill(c, m)
			if s := &c.f.servers[hostA]; s.inServer {
				c.f.take(farmStep{op: farmKillServer, node: hostA, crash: never})
			}
		}},
		{"its agent is away for long", func(c *farmCourse, m farmMoment) {
			c.f.take(farmStep{op: farmKillAgent, node: hostA, keep: [2]bool{true, true}, how: m.how, long: true, crash: never})
		}},
		{"the dispatcher's connection to it breaks", cut(toServer(hostA), false)},
		{"for long", cut(toServer(hostA), true)},
		{"its connection to the dispatcher breaks", cut(toDispatcher(hostA), false)},
		{"for long", cut(toDispatcher(hostA), true)},
	}
	fmt.Fprintf(b, handoffHead, newFarmCourse(false).f.long().Seconds())
	for _, atOnce := range []bool{false, true} {
		if atOnce {
			b.WriteString("\n## The flow is granted at once: the server's agent has just been heard of\n\n| while |")
		} else {
			b.WriteString("\n## In two steps: the server asks for the flow\n\n| while |")
		}
		for _, k := range columns {
			fmt.Fprintf(b, " %s |", k.name)
		}
		b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
		for _, m := range farmMoments(atOnce) {
			fmt.Fprintf(b, "| %s |", m.name)
			for _, k := range columns {
				c := newFarmCourse(atOnce)
				c.until(t, m)
				k.spoil(c, m)
				c.finish(t)
				if c.f.broken != "" {
					t.Errorf("%s, %s: %s", m.name, k.name, c.f.broken)
				}
				if limit := c.f.limit + c.f.grace; c.stall > limit {
					t.Errorf("%s, %s: the client waits %v, want at most %v", m.name, k.name, c.stall, limit)
				}
				fmt.Fprintf(b, " %s |", c.outcome())
			}
			b.WriteString("\n")
		}
	}
}
