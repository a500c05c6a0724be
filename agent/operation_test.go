// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// testAddress is the address of the service "s" in these tests.
func testAddress() netip.AddrPort { return netip.MustParseAddrPort("10.9.9.9:80") }

func testFlow(i int) tcprepair.Flow {
	client := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	return tcprepair.NewFlow(testAddress(), netip.AddrPortFrom(client, 1000))
}

// testEngine returns the engine of host a, without a gate: nothing in these tests comes as far as a freeze. Its peers b and c are not
// reachable; the test answers for them.
func testEngine(t testing.TB, entry string, servers ...string) *engine {
	t.Helper()
	c := Config{
		Host: "a", Interfaces: []string{"lo"}, Plaintext: true,
		Peers:    []PeerConfig{{Name: "b", Address: "127.0.0.1:1"}, {Name: "c", Address: "127.0.0.1:1"}},
		Services: []ServiceConfig{{Name: "s", Addresses: []netip.AddrPort{testAddress()}, Entry: entry, Servers: servers}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	e := newEngine(c, nil, nil, newMetrics(), nil, slog.New(slog.DiscardHandler))
	for _, p := range e.peers {
		p.dialing = true // so that frames wait
	}
	return e
}

// testApplication connects an application that serves "s"; the test has the other end.
func testApplication(t *testing.T, e *engine) (*application, *wire.Link) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	link := func(fd int) *wire.Link {
		f := os.NewFile(uintptr(fd), "application")
		defer f.Close()
		conn, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		l := wire.NewLink(conn)
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	a := &application{e: e, name: "test", link: link(fds[0]), services: map[string]*wire.Register{"s": {Service: "s", Importer: true}}}
	e.apps[a] = struct{}{}
	return a, link(fds[1])
}

func located1(a *application, i int) located {
	return located{status: wire.FlowStatus{Flow: testFlow(i), Service: "s", Epoch: 1, Movable: true}, app: a}
}

// testOperation is an operation whose connections the test hands in.
type testOperation struct {
	*operation
	moved []Moved
	err   error
	ended bool
}

func newTestOperation(e *engine, req MoveRequest, found []located) *testOperation {
	o := &testOperation{}
	o.operation = &operation{
		e: e, req: req, planned: func(int) {}, report: func(m Moved) { o.moved = append(o.moved, m) },
		over: func(err error) { o.ended, o.err = true, err }, seen: make(map[tcprepair.Flow]int), started: time.Now(),
	}
	e.ops[o.operation] = struct{}{}
	o.add(found)
	return o
}

// TestManyFailuresAtOnce lets every connection of a large operation fail at once: that must not nest.
func TestManyFailuresAtOnce(t *testing.T) {
	const n = 200000
	e := testEngine(t, "a", "a", "b") // the entry is this host, and says no at once: c is no server
	a, _ := testApplication(t, e)
	found := make([]located, n)
	for i := range found {
		found[i] = located1(a, i+1)
	}
	o := newTestOperation(e, MoveRequest{Concurrency: 64, To: "c"}, found)
	o.pump()
	if len(o.moved) != n || !o.ended {
		t.Errorf("%d of %d ended, operation over: %v", len(o.moved), n, o.ended)
	}
}

// TestRetriesGoRound has one of two other servers refuse: no connection may stay because of it.
func TestRetriesGoRound(t *testing.T) {
	e := testEngine(t, "c", "a", "b", "c")
	a, _ := testApplication(t, e)
	var found []located
	for i := range 1000 {
		found = append(found, located1(a, i+1))
	}
	o := newTestOperation(e, MoveRequest{Concurrency: 64}, found)
	o.pump()
	for len(e.sources) > 0 {
		for id, s := range e.sources {
			if s.target == "b" {
				e.answer(e.peers["b"], wire.Frame{ID: id, Message: &wire.Refuse{Code: wire.CodeDraining}})
			} else {
				delete(e.sources, id)
				delete(e.moving, s.flow)
				s.done(Moved{Flow: s.flow, To: "c", Outcome: OutcomeMoved})
			}
			break
		}
	}
	if i := slices.IndexFunc(o.moved, func(m Moved) bool { return m.Outcome != OutcomeMoved }); i >= 0 || len(o.moved) != 1000 {
		t.Errorf("%d ended; one stayed: %+v", len(o.moved), o.moved[max(i, 0)])
	}
}

// TestOneBlip breaks a peer's connection under a full operation: what was not begun must not suffer, and nothing stale may be sent.
func TestOneBlip(t *testing.T) {
	e := testEngine(t, "c", "a", "b")
	a, _ := testApplication(t, e)
	var found []located
	for i := range 2000 {
		found = append(found, located1(a, i+1))
	}
	o := newTestOperation(e, MoveRequest{Concurrency: 64}, found)
	o.pump()
	if len(e.sources) != 64 {
		t.Fatalf("%d moves in flight, want 64", len(e.sources))
	}
	e.peers["b"].down(errors.New("blip"))
	if len(o.moved) != 0 {
		t.Errorf("%d connections were given up", len(o.moved))
	}
	for _, f := range e.peers["b"].waiting {
		if _, ok := f.Message.(*wire.Offer); ok && e.sources[f.ID] == nil {
			t.Error("an offer of a move that is over waits to be sent")
		}
	}
}

// TestSilentApplication drains a host one of whose programs does not answer: that is no success.
func TestSilentApplication(t *testing.T) {
	e := testEngine(t, "a", "a", "b")
	e.draining = true // this host is the entry itself: nobody to tell, and no gate here to tell
	testApplication(t, e)
	over := make(chan error, 1)
	done := make(chan error, 1)
	go func() { done <- e.run(t.Context()) }()
	e.post(func(e *engine) {
		e.startOperation(MoveRequest{Drain: true}, func(int) {}, func(Moved) {}, func(err error) { over <- err })
	})
	select {
	case err := <-over:
		if err == nil || !strings.Contains(err.Error(), "did not say") {
			t.Errorf("the drain ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the drain does not end")
	}
}

// TestLostApplication starts a move of a connection whose application has gone meanwhile.
func TestLostApplication(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	a, _ := testApplication(t, e)
	a.lost(errors.New("gone"))
	var got []Moved
	e.startSource(a, located1(a, 1).status, "b", func(m Moved) { got = append(got, m) })
	if len(got) != 1 || got[0].Outcome != OutcomeGone || len(e.sources) != 0 {
		t.Errorf("ended with %+v, %d sources left", got, len(e.sources))
	}
}

// TestPresenceIsNotStale drains and undrains a host while its entry cannot be reached: nothing old may wait for the entry, which
// would take it for the newest word.
func TestPresenceIsNotStale(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	e.setDraining(true)
	e.setDraining(false)
	for _, f := range e.peers["b"].waiting {
		if _, ok := f.Message.(*wire.Presence); ok {
			t.Errorf("%+v waits to be sent", f.Message)
		}
	}
	if e.untold() != "b" {
		t.Error("the entry counts as told")
	}
}

// finish ends every move in flight.
func finish(e *engine, outcome string) {
	for id, s := range e.sources {
		delete(e.sources, id)
		delete(e.moving, s.flow)
		s.done(Moved{Flow: s.flow, To: s.target, Outcome: outcome})
	}
}

// TestOperationRunsOutOfTime ends the time of an operation, or the operation itself, while some of its moves are in flight: what has not been
// begun is reported with the reason, and the operation has failed only if something stayed.
func TestOperationRunsOutOfTime(t *testing.T) {
	const all = 5
	for _, tt := range []struct {
		name        string
		concurrency int
		outcome     string // of what is in flight
		end         func(o *testOperation)
		stay        int
		reason, err error
		failed      bool
	}{
		{"some have not begun", 2, OutcomeMoved, func(o *testOperation) { o.tick(o.deadline.Add(1)) }, 3, errTimeout, nil, true},
		{"all are in flight", all, OutcomeMoved, func(o *testOperation) { o.tick(o.deadline.Add(1)) }, 0, nil, nil, false},
		{"all are in flight, and come back", all, OutcomeResumed, func(o *testOperation) { o.tick(o.deadline.Add(1)) }, all, nil, nil, true},
		{"the operator gives up", 2, OutcomeMoved, func(o *testOperation) { o.cancel(errAborted) }, 3, errAborted, errAborted, true},
		{"the agent stops", 2, OutcomeMoved, func(o *testOperation) { o.cancel(errStopping) }, 3, errStopping, errStopping, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := testEngine(t, "c", "a", "b")
			a, _ := testApplication(t, e)
			var found []located
			for i := range all {
				found = append(found, located1(a, i+1))
			}
			o := newTestOperation(e, MoveRequest{Concurrency: tt.concurrency, Timeout: time.Millisecond}, found)
			o.deadline = time.Now().Add(time.Hour)
			o.pump()
			if len(e.sources) != tt.concurrency {
				t.Fatalf("%d moves in flight", len(e.sources))
			}
			tt.end(o)
			if o.ended {
				t.Fatal("it is over while moves are in flight")
			}
			finish(e, tt.outcome)
			stayed := 0
			for _, m := range o.moved {
				if m.Outcome == OutcomeResumed {
					stayed++
				}
				if m.Outcome == OutcomeResumed && !errors.Is(m.Err, tt.reason) {
					t.Errorf("%v stayed because of %v, want %v", m.Flow, m.Err, tt.reason)
				}
			}
			if len(o.moved) != all || stayed != tt.stay {
				t.Errorf("%d of %d reported, %d stayed, want %d", len(o.moved), all, stayed, tt.stay)
			}
			if !o.ended || (o.err != nil) != tt.failed || tt.err != nil && !errors.Is(o.err, tt.err) {
				t.Errorf("over: %v, with %v", o.ended, o.err)
			}
		})
	}
}

// TestDrainLooksAgainAfterItsTime drains with too little time. What it has moved then is everything only if another look finds nothing.
func TestDrainLooksAgainAfterItsTime(t *testing.T) {
	for _, tt := range []struct {
		name string
		more []wire.FlowStatus
	}{
		{"nothing is left", nil},
		{"another one has come", []wire.FlowStatus{{Flow: testFlow(2), Service: "s", Movable: true}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := testEngine(t, "a", "a", "b") // its own entry: nobody is to be told
			a, _ := testApplication(t, e)
			o := newTestOperation(e, MoveRequest{Drain: true, Concurrency: 1, Timeout: time.Millisecond, To: "b"}, []located{located1(a, 1)})
			o.deadline = time.Now()
			o.add(nil)
			o.queue = nil // as if it were in flight
			o.active = 1
			now := o.deadline.Add(time.Millisecond)
			o.tick(now)
			o.operation.moved(located1(a, 1), Moved{Flow: testFlow(1), Outcome: OutcomeMoved})
			for range 10 {
				now = now.Add(time.Second)
				o.tick(now)
				for id := range e.lists {
					a.frame(wire.Frame{ID: id, Message: &wire.Flows{Flows: tt.more, Last: true}}, -1)
				}
			}
			if !o.ended || (o.err != nil) != (tt.more != nil) || len(o.moved) != 1+len(tt.more) {
				t.Errorf("over: %v, with %v; %+v", o.ended, o.err, o.moved)
			}
			for _, m := range o.moved[1:] {
				if m.Outcome != OutcomeResumed || !errors.Is(m.Err, errTimeout) {
					t.Errorf("%+v", m)
				}
			}
		})
	}
}

// TestEndlessListing has an application tell of more connections than it can have, and never say that these are all.
func TestEndlessListing(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	endless, far := testApplication(t, e)
	honest, _ := testApplication(t, e)
	var found []located
	silent := -1
	e.list(wire.List{}, func(l []located, n int) { found, silent = l, n })
	tell := func(a *application, last bool) {
		for id := range e.lists {
			status := []wire.FlowStatus{{Flow: testFlow(1), Service: "s"}, {Flow: testFlow(2), Service: "s"}}
			a.frame(wire.Frame{ID: id, Message: &wire.Flows{Flows: status, Last: last}}, -1)
		}
	}
	tell(endless, false)
	for _, l := range e.lists {
		l.told[endless] = maxListed - 1
	}
	tell(endless, false)
	if _, on := e.apps[endless]; on || silent >= 0 {
		t.Fatalf("it is connected: %v; %d were silent before all have answered", on, silent)
	}
	tell(honest, true)
	if len(found) != 2 || found[0].app != honest || silent != 1 {
		t.Errorf("found %+v, %d silent", found, silent)
	}
	for {
		f, _, err := far.Receive()
		if err != nil {
			t.Fatalf("it was not told why: %v", err)
		}
		if r, ok := f.Message.(*wire.Refuse); ok {
			if !strings.Contains(r.Reason, "connections") {
				t.Errorf("it hears %q", r.Reason)
			}
			break
		}
	}
}

// TestStuckLinksEndTogether ends an agent, all whose links are stuck: its successor waits for one second, not for one each.
func TestStuckLinksEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t, "b", "a", "b")
		stuck := func() *wire.Link {
			near, far := net.Pipe() // far is not read from
			t.Cleanup(func() { _ = far.Close() })
			l := wire.NewLink(near)
			if err := l.Queue(1, &wire.Ping{}, -1); err != nil {
				t.Fatal(err)
			}
			l.Flush()
			return l
		}
		for range 10 {
			e.apps[&application{e: e, link: stuck()}] = struct{}{}
			e.incoming[&incoming{e: e, link: stuck()}] = struct{}{}
		}
		e.peers["b"].link, e.peers["c"].link = stuck(), stuck()
		close(e.stopped)
		begin := time.Now()
		e.closeLinks()
		if took := time.Since(begin); took != farewellTime {
			t.Errorf("it took %v, want %v", took, farewellTime)
		}
	})
}

// TestHostileApplication sends an agent what no program should, and sees that it neither believes nor keeps it.
func TestHostileApplication(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	a, far := testApplication(t, e)
	open := func() int {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	closed := func(fd int) bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return errors.Is(err, unix.EBADF)
	}
	for _, tt := range []struct {
		name string
		m    wire.Message
		want wire.Kind
	}{
		{"a socket that nobody asked for", &wire.Exported{}, wire.KindResume},
		{"recovery with something that is no socket", &wire.Recover{Flow: testFlow(1), Service: "s"}, wire.KindRefuse},
		{"recovery of a service that is not there", &wire.Recover{Flow: testFlow(1), Service: "x"}, wire.KindRefuse},
	} {
		fd := open()
		a.frame(wire.Frame{ID: 7, Message: tt.m}, fd)
		e.flush()
		if !closed(fd) {
			t.Errorf("%s: the descriptor is still open", tt.name)
			_ = unix.Close(fd)
		}
		f, _, err := far.Receive()
		if err != nil || f.Message.Kind() != tt.want {
			t.Errorf("%s: answered with %v, %v; want %v", tt.name, f.Message, err, tt.want)
		}
	}
	m := migration.NewTarget(migration.TargetParams{Host: "a", Epoch: 1}, e.times)
	e.targets[8] = &target{e: e, id: 8, machine: m, flow: testFlow(8), app: a}
	fd := open()
	a.frame(wire.Frame{ID: 8, Message: &wire.Exported{}}, fd)
	if !closed(fd) {
		t.Error("a socket under the id of a connection that comes: the descriptor is still open")
		_ = unix.Close(fd)
	}
	delete(e.targets, 8)
	a.frame(wire.Frame{Message: &wire.Register{Service: "unknown"}}, -1)
	e.flush()
	if f, _, err := far.Receive(); err != nil || f.Message.Kind() != wire.KindRefuse {
		t.Errorf("an unknown service: %v %v", f.Message, err)
	}
	a.frame(wire.Frame{Message: &wire.Leased{}}, -1)
	if len(e.apps) != 0 {
		t.Error("an application that speaks like an entry is still connected")
	}
	if len(e.sources)+len(e.targets)+len(e.moving) != 0 {
		t.Error("something is being moved")
	}
}
