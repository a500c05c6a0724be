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
	"time"

	"golang.org/x/sys/unix"

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
