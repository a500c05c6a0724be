// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
)

func TestListensAt(t *testing.T) {
	for _, test := range []struct {
		listener, at string
		want         bool
	}{
		{"192.0.2.1:80", "192.0.2.1:80", true},
		{"192.0.2.2:80", "192.0.2.1:80", false},
		{"192.0.2.1:81", "192.0.2.1:80", false},
		{"0.0.0.0:80", "192.0.2.1:80", true},
		{"0.0.0.0:80", "[2001:db8::1]:80", false},
		{"[::]:80", "[2001:db8::1]:80", true},
		{"[::]:80", "192.0.2.1:80", true},
		{"[::ffff:192.0.2.1]:80", "192.0.2.1:80", true},
	} {
		found := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort(test.listener)}
		if got := listensAt(found, netip.MustParseAddrPort(test.at)); got != test.want {
			t.Errorf("%s at %s: %v", test.listener, test.at, got)
		}
	}
}

func TestClash(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"192.0.2.1:80", "192.0.2.1:80", true},
		{"192.0.2.1:80", "192.0.2.2:80", false},
		{"0.0.0.0:80", "192.0.2.2:80", true},
		{"192.0.2.1:80", "[::]:80", true},
		{"0.0.0.0:80", "0.0.0.0:81", false},
	} {
		if got := clash(netip.MustParseAddrPort(test.a), netip.MustParseAddrPort(test.b)); got != test.want {
			t.Errorf("%s and %s: %v", test.a, test.b, got)
		}
	}
}

// TestWhoListens finds a listener, and a connection no more.
func TestWhoListens(t *testing.T) {
	c := net.ListenConfig{}
	c.SetMultipathTCP(false)
	var want []netip.AddrPort
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := c.Listen(context.Background(), "tcp", at)
		if err != nil {
			t.Logf("%s: %v", at, err)
			continue
		}
		defer ln.Close()
		want = append(want, netip.MustParseAddrPort(ln.Addr().String()))
	}
	conn, err := net.Dial("tcp", want[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	found, err := whoListens()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range want {
		if !slices.Contains(found, a) {
			t.Errorf("%v is not among %v", a, found)
		}
	}
	if slices.Contains(found, netip.MustParseAddrPort(conn.LocalAddr().String())) {
		t.Errorf("%v does not listen", conn.LocalAddr())
	}
	if n, err := handshakes(want); n != 0 || err != nil {
		t.Errorf("%d handshakes, %v", n, err)
	}
}

func TestTokens(t *testing.T) {
	seen := make(map[string]bool)
	for _, id := range []uint64{1, 2, 1 << 63, 1<<64 - 1} {
		f := tokenOf(id)
		if !f.IsValid() || seen[f.String()] {
			t.Errorf("%d: %v", id, f)
		}
		seen[f.String()] = true
	}
}

// processEngine is an engine whose one service is a process, with this host and a peer as its servers.
func processEngine(t *testing.T) *engine {
	t.Helper()
	e := testEngine(t, "b", "a", "b")
	e.cfg.Services[0].Process = true
	return e
}

// TestIdle asks who is idle as hosts come and go.
func TestIdle(t *testing.T) {
	e := processEngine(t)
	s := e.cfg.Services[0]
	if !e.isIdle("b", s.Name) {
		t.Error("a host that has said nothing gets connections")
	}
	e.idle["b"] = map[string]bool{}
	if e.isIdle("b", s.Name) {
		t.Error("a host that listens gets none")
	}
	e.setIdle("b", s.Name, true)
	e.setIdle("a", s.Name, false)
	if !e.isIdle("b", s.Name) || e.isIdle("a", s.Name) {
		t.Error("a process that has come is not known")
	}
	e.listening[s.Name] = false
	if d := cmp.Diff([]string{s.Name}, e.idleFor(s.Entry)); d != "" {
		t.Error(d)
	}
	if got := e.idleFor("elsewhere"); got != nil {
		t.Errorf("another entry is told %v", got)
	}
}

// TestAwaitsWord leaves the servers of a process to a pinned table until somebody has said where it is, or all that it is nowhere.
func TestAwaitsWord(t *testing.T) {
	e := processEngine(t)
	s := e.cfg.Services[0]
	for _, step := range []struct {
		what  string
		do    func()
		waits bool
	}{
		{"nobody has said anything", func() {}, true},
		{"the other server is idle", func() { e.setIdle("b", s.Name, true) }, true},
		{"this one, too", func() { e.setIdle("a", s.Name, true) }, false},
		{"the other one is not", func() { e.setIdle("b", s.Name, false); delete(e.listening, s.Name) }, false},
	} {
		step.do()
		if got := e.awaitsWord(s, e.serversOf(&e.cfg, s)); got != step.waits {
			t.Errorf("%s: %v", step.what, got)
		}
	}
	s.Process = false
	if e.awaitsWord(s, nil) {
		t.Error("a service that is no process waits")
	}
}

// TestLookIsLeftToMoves has a look come back while a process comes: it must not contradict the move.
func TestLookIsLeftToMoves(t *testing.T) {
	e := processEngine(t)
	s := e.cfg.Services[0]
	e.listening[s.Name] = false
	e.arrivals[1] = &processTarget{offer: &wire.Process{Services: s.Addresses}}
	e.heardListeners(s.Addresses)
	if e.listening[s.Name] {
		t.Error("a tree that stands still gets connections")
	}
	delete(e.arrivals, 1)
	e.heardListeners(s.Addresses)
	if !e.listening[s.Name] {
		t.Error("who listens is not known")
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, socketAnswerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseDiag(b); ok && !a.IsValid() {
			t.Errorf("%v", a)
		}
	})
}
