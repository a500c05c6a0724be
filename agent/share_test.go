// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestShare(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	e.cfg.Migration.BufferBytes = 100
	var one, two share
	for _, tt := range []struct {
		s    *share
		n    int
		ok   bool
		kept int
	}{
		{&one, 60, true, 60},
		{&two, 41, false, 60},
		{&two, 40, true, 100},
		{&one, 1, false, 100},
		{&one, 0, true, 100},
	} {
		if err := tt.s.take(e, tt.n); (err == nil) != tt.ok || e.kept != tt.kept {
			t.Errorf("%d more: %v, %d kept", tt.n, err, e.kept)
		}
	}
	one.give(e, 50)
	one.give(e, 50) // more than it has
	two.giveAll(e)
	two.giveAll(e)
	if e.kept != 0 || one != 0 || two != 0 {
		t.Errorf("%d kept, %d and %d", e.kept, one, two)
	}
	// A reload may lower the bound below what is kept.
	_ = one.take(e, 90)
	e.cfg.Migration.BufferBytes = 50
	if err := two.take(e, 1); err == nil {
		t.Error("accepted beyond the bound")
	}
}

// sourceLink gives an engine a connection from host c, with moves 1 to n reserved; the test has the other end.
func sourceLink(t *testing.T, e *engine, n int) (*incoming, *wire.Link) {
	t.Helper()
	near, far := net.Pipe()
	in := &incoming{e: e, name: "c", link: wire.NewLink(near), heard: time.Now()}
	link := wire.NewLink(far)
	t.Cleanup(func() { _, _ = in.link.Close(), link.Close() })
	e.incoming[in] = struct{}{}
	for i := 1; i <= n; i++ {
		m := migration.NewTarget(migration.TargetParams{Host: "a", Epoch: 1}, e.times)
		tg := &target{e: e, id: uint64(i), machine: m, flow: testFlow(i), service: "s", epoch: 1, entry: "b", from: in}
		e.targets[tg.id], e.taking[tg.flow] = tg, tg
		m.Step(time.Now(), migration.Event{Kind: migration.Start})
	}
	return in, link
}

// TestTargetsShare sends this host more of many moves than it keeps: each that finds no room is refused, and the others go on.
func TestTargetsShare(t *testing.T) {
	for _, tt := range []struct {
		name string
		last wire.Message
	}{
		{"of State", &wire.Chunk{Blob: wire.BlobState, Data: make([]byte, 200)}},
		{"of a snapshot", &wire.Chunk{Blob: wire.BlobSnapshot, Data: make([]byte, 200)}},
		{"of a receive queue", &wire.Chunk{Blob: wire.BlobReceived, Data: make([]byte, 200)}},
		{"of the transfer", &wire.Transfer{Snapshot: make([]byte, 100), State: make([]byte, 100)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := testEngine(t, "b", "a", "b", "c")
			e.cfg.Migration.BufferBytes = 1000
			in, link := sourceLink(t, e, 3)
			for id := range uint64(3) {
				e.request(in, wire.Frame{ID: id + 1, Message: &wire.Chunk{Blob: wire.BlobAhead, Data: make([]byte, 300)}})
			}
			if e.kept != 900 {
				t.Fatalf("%d bytes are kept", e.kept)
			}
			e.request(in, wire.Frame{ID: 2, Message: tt.last})
			e.flush()
			f, _, err := link.Receive()
			r, ok := f.Message.(*wire.Refuse)
			if err != nil || !ok || f.ID != 2 || r.Code != wire.CodeBusy || !strings.Contains(r.Reason, "raise migration.buffer_bytes") {
				t.Errorf("answered with %+v, %v", f, err)
			}
			if e.targets[2] != nil || e.targets[1] == nil || e.targets[3] == nil || len(e.incoming) != 1 || e.kept != 600 {
				t.Errorf("%d moves go on, %d bytes are kept", len(e.targets), e.kept)
			}
			// What comes late of the one that has been refused does not count.
			e.request(in, wire.Frame{ID: 2, Message: &wire.Chunk{Blob: wire.BlobState, Data: make([]byte, 300)}})
			e.request(in, wire.Frame{ID: 1, Message: &wire.Chunk{Blob: wire.BlobState, Data: make([]byte, 400)}})
			if e.targets[1] == nil || e.kept != 1000 {
				t.Errorf("there is room, but %d bytes are kept", e.kept)
			}
			// What the application has been given is kept no more, nor what a lost source has sent.
			a, _ := testApplication(t, e)
			e.targets[1].app, e.targets[3].app = a, a
			e.request(in, wire.Frame{ID: 1, Message: &wire.StateSent{}})
			if e.kept != 300 {
				t.Errorf("%d bytes are kept after the State has been passed on", e.kept)
			}
			in.lost(errNoPeer)
			if e.kept != 0 || len(e.targets) != 0 {
				t.Errorf("%d bytes are kept of nothing", e.kept)
			}
		})
	}
}

// TestEarlyFramesShare sends held packets before the entry has answered: what finds no room is dropped, and the move goes on.
func TestEarlyFramesShare(t *testing.T) {
	e := testEngine(t, "b", "a", "b", "c")
	e.cfg.Migration.BufferBytes = 250
	in, _ := sourceLink(t, e, 1)
	tg := e.targets[1]
	tg.machine, _ = migration.RecoverTarget(time.Now(), migration.TargetParams{Host: "a", Epoch: 1}, e.times) // it waits for the entry
	frame := make([]byte, 100)
	e.request(in, wire.Frame{ID: 1, Message: &wire.Held{Frames: [][]byte{frame, frame, frame}}})
	e.request(in, wire.Frame{ID: 1, Message: &wire.Held{Frames: [][]byte{frame[:50], frame}, Last: true}})
	if len(tg.early) != 3 || tg.missed != 2 || !tg.last || e.kept != 250 || e.targets[1] == nil {
		t.Errorf("%d frames, %d missed, last %v, %d bytes", len(tg.early), tg.missed, tg.last, e.kept)
	}
	tg.finish(errNoPeer)
	if e.kept != 0 {
		t.Errorf("%d bytes are kept of nothing", e.kept)
	}
}

// processLink gives an engine the move of a tree from host c, in the state that steps lead to.
func processLink(t *testing.T, e *engine, steps ...migration.Event) (*processTarget, *wire.Link) {
	t.Helper()
	in, link := sourceLink(t, e, 0)
	m := migration.NewTarget(migration.TargetParams{Host: "a", Epoch: 1}, e.processTimes())
	for _, ev := range append([]migration.Event{{Kind: migration.Start}}, steps...) {
		m.Step(time.Now(), ev)
	}
	p := &processTarget{e: e, id: 1, offer: &wire.Process{Name: "redis"}, from: in, entry: "b", machine: m, restoring: true}
	e.arrivals[p.id] = p
	return p, link
}

// TestProcessHeldShare sends the packets that were held for a tree: they are kept only while the tree is about to run, as far as there is room.
func TestProcessHeldShare(t *testing.T) {
	restored := []migration.Event{{Kind: migration.Transferred}, {Kind: migration.Restored}, {Kind: migration.Imported}}
	for _, tt := range []struct {
		name         string
		steps        []migration.Event
		kept, missed int
		last         bool
	}{
		{"before the image", nil, 0, 0, false},
		{"while it is restored", restored[:1], 0, 0, false},
		{"while the entry decides", restored, 2, 3, true},
		{"before it runs", append(restored[:3:3], migration.Event{Kind: migration.OwnerIs, Owner: migration.Owner{Host: "a", Epoch: 2}}), 2, 3, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := testEngine(t, "b", "a", "b", "c")
			e.cfg.Migration.BufferBytes = 250
			p, _ := processLink(t, e, tt.steps...)
			frame := make([]byte, 100)
			e.request(p.from, wire.Frame{ID: 1, Message: &wire.Held{Frames: [][]byte{frame, frame, frame}}})
			e.request(p.from, wire.Frame{ID: 1, Message: &wire.Held{Frames: [][]byte{frame, frame}, Last: true}})
			if len(p.early) != tt.kept || p.missed != tt.missed || p.last != tt.last || e.kept != 100*tt.kept {
				t.Errorf("%d frames, %d missed, last %v, %d bytes", len(p.early), p.missed, p.last, e.kept)
			}
			p.over, p.restoring, p.err = true, false, errNoPeer
			p.finish()
			if e.kept != 0 || len(e.arrivals) != 0 {
				t.Errorf("%d bytes are kept of nothing", e.kept)
			}
		})
	}
}

// TestProcessFlowsShare adds connections to a tree's move again and again: when there is no room the move is refused.
func TestProcessFlowsShare(t *testing.T) {
	e := testEngine(t, "b", "a", "b", "c")
	e.cfg.Migration.BufferBytes = 10 * flowBytes
	p, link := processLink(t, e)
	e.gate = &servingGate{}
	for range 3 {
		e.request(p.from, wire.Frame{ID: 1, Message: &wire.FlowSet{Flows: []tcprepair.Flow{testFlow(1), testFlow(2), testFlow(3), testFlow(4)}}})
	}
	e.flush()
	f, _, err := link.Receive()
	r, ok := f.Message.(*wire.Refuse)
	if err != nil || !ok || r.Code != wire.CodeBusy || !strings.Contains(r.Reason, "raise migration.buffer_bytes") {
		t.Errorf("answered with %+v, %v", f, err)
	}
	if len(p.flows) != 8 || p.machine.State() != migration.TargetGone {
		t.Errorf("%d connections, %v", len(p.flows), p.machine.State())
	}
}

// servingGate is a gate that holds packets when asked to.
type servingGate struct{ packetGate }

func (g *servingGate) Serve(tcprepair.Flow, time.Duration) error { return nil }
func (g *servingGate) Yield(tcprepair.Flow) error                { return nil }

// TestSourceShare has an application export more State than there is room for: its connection goes on here.
func TestSourceShare(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	e.cfg.Migration.BufferBytes = 1000
	a, far := testApplication(t, e)
	var ends []Moved
	e.startSource(a, located1(a, 1).status, "b", func(m Moved) { ends = append(ends, m) })
	var id uint64
	for id = range e.sources {
		e.answer(e.peers["b"], wire.Frame{ID: id, Message: &wire.Accept{}})
		e.answer(e.peers["b"], wire.Frame{ID: id, Message: &wire.Leased{}})
	}
	chunk := &wire.Chunk{Blob: wire.BlobState, Data: make([]byte, 600)}
	a.frame(wire.Frame{ID: id, Message: chunk}, -1)
	if len(ends) != 0 || e.kept != 600 {
		t.Fatalf("%d bytes are kept; %+v", e.kept, ends)
	}
	a.frame(wire.Frame{ID: id, Message: chunk}, -1)
	if len(ends) != 1 || ends[0].Outcome != OutcomeResumed || codeOf(ends[0].Err) != wire.CodeBusy || e.kept != 0 {
		t.Errorf("%d bytes are kept; %+v", e.kept, ends)
	}
	e.flush()
	for {
		f, _, err := far.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.Message.(*wire.Resume); ok {
			if !strings.Contains(r.Reason, "buffer_bytes") {
				t.Errorf("the application hears %q", r.Reason)
			}
			break
		}
	}
	if len(e.apps) != 1 {
		t.Error("the application was given up")
	}
}
