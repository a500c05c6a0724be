// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

// TestAnyOrder mixes the two sides of the transcripts. Those of several calls with the same ports, and of several places that
// answer, depend on the order: which place is early and which is late is the order.
func TestAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	leaves := map[string]int{
		"call": 0, "late-offer": 0, "media": 12, "nat": 4, "order": 2, "multipart": 2, "malformed": 0, "tcp": 2, "encrypted": 0, "challenge": 0,
	}
	for name, text := range inspecttest.Transcripts(t) {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "testdata/"), ".txt")
		want, ok := leaves[name]
		if !ok {
			continue
		}
		delete(leaves, name)
		if left := inspecttest.AnyOrder(t, inspector(), text, random); strings.Count(left, "\n") != want {
			t.Errorf("%s leaves %s", name, left)
		}
	}
	if len(leaves) > 0 {
		t.Errorf("no transcripts for %v", leaves)
	}
}

func newPair(t testing.TB, c Config) *Pair {
	t.Helper()
	p, err := NewPair(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// call makes halves of one call: its media's ports are of its number.
type call struct {
	id     string
	number uint16
}

func (c call) half(side inspect.Side, method inspect.Method, status uint16, to string) inspect.Half {
	return inspect.Half{
		Protocol: inspect.SIP, Side: side, Flow: testFlow(), Method: method, Status: status, Seq: 1, Session: c.id, From: "a", To: to,
	}
}

func (c call) with(h inspect.Half) inspect.Half {
	host, port := testFlow().Client.Addr(), 40000+2*c.number
	if h.Side == inspect.Server {
		host, port = testFlow().Server.Addr(), 20000+2*c.number
	}
	h.Streams = []inspect.Stream{{
		Transport: inspect.RTP, RTP: netip.AddrPortFrom(host, port), RTCP: netip.AddrPortFrom(host, port+1),
	}}
	return h
}

func (c call) invite() inspect.Half { return c.with(c.half(inspect.Client, inspect.Invite, 0, "")) }

func (c call) answer(status uint16, to string) inspect.Half {
	return c.with(c.half(inspect.Server, inspect.Invite, status, to))
}

func (c call) bye(to string) inspect.Half { return c.half(inspect.Server, inspect.Bye, 200, to) }

func found(o *inspect.Outcome, r inspect.Reason) bool {
	return slices.ContainsFunc(o.Findings, func(f inspect.Finding) bool { return f.Reason == r })
}

// TestTrunk has several calls in one session: it ends with the last.
func TestTrunk(t *testing.T) {
	p := newPair(t, Config{})
	for n := range uint16(3) {
		c := call{fmt.Sprint("call", n), n}
		if o := p.Add(c.invite()); o.Identity != c.id {
			t.Errorf("%d: %+v", n, o)
		}
		if o := p.Add(c.answer(200, "b")); len(o.Install) != 2 {
			t.Errorf("%d: %+v", n, o)
		}
	}
	for n := range uint16(3) {
		if o := p.Add(call{fmt.Sprint("call", n), n}.bye("b")); len(o.Withdraw) != 2 || o.Ended != (n == 2) {
			t.Errorf("%d: %+v", n, o)
		}
	}
}

// TestDialogs holds how many calls a session has: one without media makes room without a word, else the oldest with one.
func TestDialogs(t *testing.T) {
	p := newPair(t, Config{Limits: Limits{Dialogs: 2}})
	talking, ringing := call{"talking", 1}, call{"ringing", 2}
	p.Add(talking.invite())
	p.Add(talking.answer(200, "b"))
	p.Add(ringing.invite())
	third := call{"third", 3}
	if o := p.Add(third.invite()); found(&o, inspect.Full) || len(o.Withdraw) != 0 {
		t.Errorf("%+v", o)
	}
	p.Add(third.answer(200, "b"))
	if o := p.Add(call{"fourth", 4}.invite()); !found(&o, inspect.Full) || len(o.Withdraw) != 2 {
		t.Errorf("%+v", o)
	}
	if o := p.Add(talking.bye("b")); len(o.Withdraw) != 0 || o.Ended {
		t.Errorf("%+v", o)
	}
}

// TestLegs holds how many places answer one call.
func TestLegs(t *testing.T) {
	p := newPair(t, Config{})
	c := call{"a", 0}
	p.Add(c.invite())
	installed := 0
	for n := range uint16(maxLegs + 1) {
		o := p.Add(call{"a", n}.answer(183, fmt.Sprint("b", n)))
		installed += len(o.Install) - len(o.Withdraw)
		if found(&o, inspect.Full) != (n == maxLegs) {
			t.Errorf("%d: %+v", n, o)
		}
	}
	if installed != 2*maxLegs {
		t.Errorf("%d flows", installed)
	}
	// The one that answers is the only one that stays.
	if o := p.Add(call{"a", 3}.answer(200, "b3")); len(o.Withdraw) != 2*(maxLegs-1) || len(o.Install) != 0 {
		t.Errorf("%+v", o)
	}
}

// TestExchanges holds that old rounds are forgotten, and the newest counts.
func TestExchanges(t *testing.T) {
	p := newPair(t, Config{Limits: Limits{Exchanges: 2}})
	for n := range uint16(20) {
		c := call{"a", n}
		request, answer := c.invite(), c.answer(200, "b")
		request.Seq, answer.Seq = uint32(n), uint32(n)
		p.Add(request)
		if o := p.Add(answer); len(o.Install) != 2 || (len(o.Withdraw) == 2) != (n > 0) {
			t.Errorf("%d: %+v", n, o)
		}
	}
	if n := len(p.dialogs[0].exchanges); n != 2 {
		t.Errorf("%d are remembered", n)
	}
}

// TestStreams holds how many descriptions are remembered: what is complete goes without a word, what waits does not.
func TestStreams(t *testing.T) {
	p := newPair(t, Config{Limits: Limits{Streams: 2 * inspect.MaxStreams}})
	large := func(h inspect.Half) inspect.Half {
		for len(h.Streams) < inspect.MaxStreams {
			h.Streams = append(h.Streams, inspect.Stream{})
		}
		return h
	}
	complete, waiting, last := call{"complete", 1}, call{"waiting", 2}, call{"last", 3}
	p.Add(large(complete.invite()))
	if o := p.Add(large(complete.answer(200, "b"))); len(o.Install) != 2 {
		t.Errorf("%+v", o)
	}
	if o := p.Add(large(waiting.invite())); found(&o, inspect.Full) || len(o.Withdraw) != 0 {
		t.Errorf("%+v", o)
	}
	if o := p.Add(large(last.invite())); found(&o, inspect.Full) {
		t.Errorf("%+v", o)
	}
	if o := p.Add(large(last.answer(200, "b"))); len(o.Install) != 2 || !found(&o, inspect.Full) {
		t.Errorf("%+v", o)
	}
	if o := p.Add(large(waiting.answer(200, "b"))); len(o.Install) != 0 {
		t.Errorf("%+v", o)
	}
	for _, c := range []call{complete, last} {
		if o := p.Add(c.bye("b")); len(o.Withdraw) != 2 {
			t.Errorf("%s: %+v", c.id, o)
		}
	}
}

// TestAnotherPort has a server that answers to another port than the client sends from.
func TestAnotherPort(t *testing.T) {
	p := newPair(t, Config{})
	request, answer := call{"a", 1}.invite(), call{"a", 1}.answer(200, "b")
	answer.Flow.Client = netip.MustParseAddrPort("198.51.100.1:5070")
	p.Add(answer)
	if o := p.Add(request); len(o.Install) != 2 || o.Install[0].Client.Addr() != testFlow().Client.Addr() {
		t.Errorf("%+v", o)
	}
}

func TestFlows(t *testing.T) {
	p := newPair(t, Config{Limits: Limits{Flows: 3}})
	for n := range uint16(2) {
		c := call{fmt.Sprint("call", n), n}
		p.Add(c.invite())
		if o := p.Add(c.answer(200, "b")); len(o.Install) != 2-int(n) || found(&o, inspect.Full) != (n == 1) {
			t.Errorf("%d: %+v", n, o)
		}
	}
}

// TestStrays have no call to belong to, and make none.
func TestStrays(t *testing.T) {
	p := newPair(t, Config{})
	c := call{"a", 1}
	for name, h := range map[string]inspect.Half{
		"the end of nothing": c.bye("b"),
		"an end":             c.half(inspect.Client, inspect.Bye, 0, "b"),
		"a refusal":          c.half(inspect.Server, inspect.Invite, 486, "b"),
		"an ACK":             c.half(inspect.Client, inspect.Ack, 0, "b"),
		"a CANCEL":           c.half(inspect.Client, inspect.Cancel, 0, ""),
	} {
		if o := p.Add(h); len(p.dialogs) != 0 || o.Ended || o.Identity != "" || o.Findings != nil {
			t.Errorf("%s: %+v, %d dialogs", name, o, len(p.dialogs))
		}
	}
	rtsp, nameless := c.invite(), c.invite()
	rtsp.Protocol = inspect.RTSP
	nameless.Session = ""
	for _, h := range []inspect.Half{rtsp, nameless, c.half(inspect.Client, inspect.Setup, 0, "")} {
		if o := p.Add(h); !found(&o, inspect.Misplaced) {
			t.Errorf("%+v: %+v", h, o)
		}
	}
}

// TestTimeout tells the interval of the positive answer only, which may be shorter than the one asked for (RFC 4028).
func TestTimeout(t *testing.T) {
	p := newPair(t, Config{})
	c := call{"a", 1}
	request, answer := c.invite(), c.answer(200, "b")
	request.Timeout, answer.Timeout = time.Hour, time.Minute
	if o := p.Add(request); o.Timeout != 0 {
		t.Errorf("%+v", o)
	}
	if o := p.Add(answer); o.Timeout != time.Minute {
		t.Errorf("%+v", o)
	}
}

// TestRefusedAnew keeps an established call's media when a new description is refused, whoever refuses it.
func TestRefusedAnew(t *testing.T) {
	for _, asker := range []inspect.Side{inspect.Client, inspect.Server} {
		p := newPair(t, Config{})
		p.Add(call{"a", 1}.invite())
		p.Add(call{"a", 1}.answer(200, "b"))
		request := call{"a", 2}.with(call{"a", 2}.half(asker, inspect.Invite, 0, "b"))
		refusal := call{"a", 2}.half(asker.Other(), inspect.Invite, 488, "b")
		request.Seq, refusal.Seq = 7, 7
		for _, h := range []inspect.Half{request, refusal} {
			if o := p.Add(h); len(o.Install)+len(o.Withdraw) != 0 || o.Ended {
				t.Errorf("%v: %+v", asker, o)
			}
		}
		if e := p.dialogs[0].exchanges; len(e) != 1 || e[0].seq != 1 {
			t.Errorf("%v: %d exchanges are remembered", asker, len(e))
		}
	}
}

func TestClosed(t *testing.T) {
	p := newPair(t, Config{})
	p.Add(call{"a", 1}.invite())
	p.Add(call{"a", 1}.answer(200, "b"))
	if o := p.Closed(testFlow()); o.Ended || o.Withdraw != nil {
		t.Errorf("%+v", o)
	}
	if o := p.Add(call{"a", 1}.bye("b")); !o.Ended || len(o.Withdraw) != 2 {
		t.Errorf("%+v", o)
	}
}

func BenchmarkPair(b *testing.B) {
	c := call{"a", 1}
	halves := []inspect.Half{c.invite(), c.answer(183, "b"), c.answer(200, "b"), c.half(inspect.Client, inspect.Ack, 0, "b"), c.bye("b")}
	p := newPair(b, Config{})
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range halves {
			p.Add(h)
		}
	}
}
