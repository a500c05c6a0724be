// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

// TestAnyOrder mixes the two sides of the transcripts, and of one that leaves flows behind.
func TestAnyOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for name, text := range inspecttest.Transcripts(t) {
		// What the end of the connection ends is no half.
		if left := inspecttest.AnyOrder(t, inspector(), text, random); (left != "") != strings.Contains(name, "hangup") {
			t.Errorf("%s leaves\n%s", name, left)
		}
		// Without its last request: what it tore down stays.
		begun, _, found := strings.Cut(text, "\n> TEARDOWN")
		if left := inspecttest.AnyOrder(t, inspector(), begun, random); found && strings.Contains(name, "play") && strings.Count(left, "\n") != 4 {
			t.Errorf("%s leaves, without its end,\n%s", name, left)
		}
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

// setupOf returns a SETUP of a stream and its answer.
func setupOf(seq uint32, id string) (request, answer inspect.Half) {
	client := inspect.Stream{Transport: inspect.RTP, RTP: portOf(50000 + 2*uint16(seq)), RTCP: portOf(50001 + 2*uint16(seq))}
	server := inspect.Stream{Transport: inspect.RTP, RTP: portOf(6000 + 2*uint16(seq)), RTCP: portOf(6001 + 2*uint16(seq))}
	request = inspect.Half{
		Protocol: inspect.RTSP, Side: inspect.Client, Flow: testFlow(), Method: inspect.Setup, Seq: seq,
		Target: uint64(seq), Session: id, Streams: []inspect.Stream{client},
	}
	answer = inspect.Half{
		Protocol: inspect.RTSP, Side: inspect.Server, Flow: testFlow(), Status: 200, Seq: seq, Session: id, Streams: []inspect.Stream{server},
	}
	return request, answer
}

func found(o *inspect.Outcome, r inspect.Reason) bool {
	for _, f := range o.Findings {
		if f.Reason == r {
			return true
		}
	}
	return false
}

// TestPending holds how many halves wait: the oldest is forgotten, and that is said when it announces flows.
func TestPending(t *testing.T) {
	for _, side := range []inspect.Side{inspect.Client, inspect.Server} {
		p := newPair(t, Config{Limits: Limits{Pending: 3}})
		var others []inspect.Half
		for seq := range uint32(4) {
			h, other := setupOf(seq+1, "a")
			if side == inspect.Server {
				h, other = other, h
			}
			others = append(others, other)
			if o := p.Add(h); found(&o, inspect.Full) != (seq == 3) {
				t.Errorf("%v: after %d: %+v", side, seq+1, o)
			}
		}
		for i, h := range others {
			if o := p.Add(h); len(o.Install) != 2 && i > 0 || len(o.Install) != 0 && i == 0 {
				t.Errorf("%v: %d: %+v", side, i, o)
			}
		}
	}
}

// TestFlows holds how many flows and streams a session has.
func TestFlows(t *testing.T) {
	p := newPair(t, Config{Limits: Limits{Flows: 5}})
	installed := 0
	for seq := range uint32(8) {
		request, answer := setupOf(seq+1, "a")
		p.Add(request)
		o := p.Add(answer)
		installed += len(o.Install)
		if found(&o, inspect.Full) != (seq >= 2) {
			t.Errorf("after %d: %+v", seq+1, o)
		}
	}
	if installed != 5 || len(p.streams) != 5 {
		t.Errorf("%d flows, %d streams", installed, len(p.streams))
	}
}

// TestOpenClientPorts leaves the client's ports open, and does not announce what then has no port at all.
func TestOpenClientPorts(t *testing.T) {
	p := newPair(t, Config{OpenClientPorts: true})
	request, answer := setupOf(1, "a")
	answer.Streams[0].RTCP = portOf(0)
	p.Add(request)
	o := p.Add(answer)
	if len(o.Install) != 1 || o.Install[0].Client.Port() != 0 || o.Install[0].Server.Port() != 6002 {
		t.Errorf("%+v", o)
	}
}

// TestClosed forgets what waited for the rest of a connection, and no more.
func TestClosed(t *testing.T) {
	p := newPair(t, Config{})
	request, answer := setupOf(1, "a")
	p.Add(request)
	p.Add(answer)
	waiting, late := setupOf(2, "a")
	p.Add(waiting)
	if o := p.Closed(testFlow()); len(o.Withdraw) != 0 || o.Ended {
		t.Errorf("%+v", o)
	}
	if o := p.Add(late); len(o.Install) != 0 {
		t.Errorf("announced after the end: %+v", o)
	}
	if len(p.streams) != 1 {
		t.Errorf("%d streams are left", len(p.streams))
	}
}

// TestSides holds that a side cannot answer itself, and that a server cannot set up.
func TestSides(t *testing.T) {
	p := newPair(t, Config{})
	request, answer := setupOf(1, "a")
	answer.Side = inspect.Client
	p.Add(request)
	if o := p.Add(answer); len(o.Install) != 0 {
		t.Errorf("answered itself: %+v", o)
	}
	request, answer = setupOf(2, "a")
	request.Side, answer.Side = inspect.Server, inspect.Client
	p.Add(request)
	if o := p.Add(answer); len(o.Install) != 0 {
		t.Errorf("set up by the server: %+v", o)
	}
	h := request
	h.Protocol = inspect.SIP
	if o := p.Add(h); !found(&o, inspect.Misplaced) {
		t.Errorf("another protocol: %+v", o)
	}
}

// TestRepeated holds that a request with the number of another takes its place.
func TestRepeated(t *testing.T) {
	p := newPair(t, Config{})
	first, _ := setupOf(1, "a")
	second, answer := setupOf(2, "a")
	second.Seq, answer.Seq = 1, 1
	p.Add(first)
	p.Add(second)
	if o := p.Add(answer); len(o.Install) != 2 || o.Install[0].Client.Port() != 50004 {
		t.Errorf("%+v", o)
	}
	if o := p.Add(answer); len(o.Install) != 0 {
		t.Errorf("answered twice: %+v", o)
	}
}

func BenchmarkPair(b *testing.B) {
	request, answer := setupOf(1, "a")
	down := inspect.Half{Protocol: inspect.RTSP, Side: inspect.Client, Flow: testFlow(), Method: inspect.Teardown, Seq: 2, Session: "a"}
	done := inspect.Half{Protocol: inspect.RTSP, Side: inspect.Server, Flow: testFlow(), Status: 200, Seq: 2}
	p := newPair(b, Config{})
	b.ReportAllocs()
	for b.Loop() {
		for _, h := range []inspect.Half{request, answer, down, done} {
			p.Add(h)
		}
	}
}

func BenchmarkFeed(b *testing.B) {
	frame := fmt.Sprintf("$\x00\x05\x78%s", strings.Repeat("x", 1400))
	for name, message := range map[string]string{
		"SETUP":  setup,
		"answer": "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1A2B3C4D;timeout=65\r\nTransport: RTP/AVP;unicast;client_port=50000-50001;server_port=6970-6971\r\n\r\n",
		"frame":  frame,
	} {
		b.Run(name, func(b *testing.B) {
			p := newParser(b, Config{}, inspect.Client)
			stream := []byte(message)
			b.SetBytes(int64(len(stream)))
			b.ReportAllocs()
			for b.Loop() {
				p.Feed(stream)
			}
		})
	}
}
