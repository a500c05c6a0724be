// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func newTable(tb testing.TB, config Config) *Table {
	tb.Helper()
	table, err := New(start(), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { release(tb, table) })
	return table
}

func release(tb testing.TB, table *Table) {
	tb.Helper()
	if err := table.Free(); err != nil {
		tb.Error(err)
	}
}

func openSession(tb testing.TB, table *Table, i int) ID {
	tb.Helper()
	id, _, err := table.Open(start(), benchKey(i), Terms{Server: Server(i)}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// TestStaleID holds that the ID of a session that is over does not reach the one that has its place.
func TestStaleID(t *testing.T) {
	table := newTable(t, Config{})
	old := openSession(t, table, 0)
	if _, err := table.Close(old, nil); err != nil {
		t.Fatal(err)
	}
	young := openSession(t, table, 0)
	if uint32(old) != uint32(young) {
		t.Fatalf("%v is not in the place of %v: the test tests nothing", young, old)
	}
	for _, id := range []ID{old, 0, young + 1, young + 1<<32, ID(uint32(young)), 1<<32 | 1<<31} {
		announcement := Announcement{Client: benchKey(1).Client, Server: benchKey(1).Server, Protocol: 17}
		for what, try := range map[string]func() error{
			"join":         func() error { _, err := table.Join(start(), id, benchKey(2), nil); return err },
			"announce":     func() error { _, err := table.Announce(start(), id, []Announcement{announcement}, nil); return err },
			"withdraw":     func() error { _, err := table.Withdraw(id, []Announcement{announcement}, nil); return err },
			"withdraw all": func() error { _, err := table.WithdrawAll(id, nil); return err },
			"close":        func() error { _, err := table.Close(id, nil); return err },
			"move":         func() error { _, err := table.Move(id, 9, nil); return err },
			"name":         func() error { return table.Name(id, "x") },
			"timeouts":     func() error { return table.SetTimeouts(id, Timeouts{Media: time.Minute}) },
		} {
			if err := try(); !errors.Is(err, ErrNoSession) {
				t.Errorf("%s %v: error %v, want ErrNoSession", what, id, err)
			}
		}
		if _, ok := table.Session(id); ok {
			t.Errorf("%v is there", id)
		}
		if flows := table.Flows(start(), id, nil); flows != nil {
			t.Errorf("%v has flows %v", id, flows)
		}
	}
	if s, ok := table.Session(young); !ok || s.Signalling != 1 || s.Media != 0 || s.Server != 0 {
		t.Errorf("session %+v, %v", s, ok)
	}
}

// TestServerWith asks for the newest session that fits, among a bounded number.
func TestServerWith(t *testing.T) {
	table := newTable(t, Config{})
	client := netip.MustParseAddr("192.0.2.77")
	key := func(i int, service uint16) Key {
		return Key{netip.AddrPortFrom(client, uint16(1000+i)), netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), service), protocolUDP}
	}
	open := func(k Key, server Server) ID {
		t.Helper()
		id, _, err := table.Open(start(), k, Terms{Server: server}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	at := func(service uint16) func(Server, Key) bool {
		return func(_ Server, k Key) bool { return k.Server.Port() == service }
	}
	open(key(0, 53), 1)
	open(key(1, 53), 2)
	last := open(key(2, 54), 3)
	if _, err := table.Announce(start(), last, []Announcement{{Client: key(3, 1).Client, Server: key(3, 9).Server, Protocol: protocolUDP}}, nil); err != nil {
		t.Fatal(err)
	}
	for service, want := range map[uint16]Server{53: 2, 54: 3, 9: 0, 55: 0} {
		if got, ok := table.ServerWith(client, at(service)); got != want || ok != (want != 0) {
			t.Errorf("port %d: server %d %t, want %d", service, got, ok, want)
		}
	}
	for i := range maxServers {
		open(key(10+i, 80), 4)
	}
	asked := 0
	if _, ok := table.ServerWith(client, func(Server, Key) bool { asked++; return false }); ok || asked != maxServers {
		t.Errorf("%d sessions were looked at, want %d", asked, maxServers)
	}
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("192.0.2.78")} {
		if got, ok := table.ServerWith(a, at(53)); ok {
			t.Errorf("%v: server %d", a, got)
		}
	}
	table.End(key(2, 54), nil) // what is left is announced
	if _, ok := table.ServerWith(client, at(54)); ok {
		t.Error("a signalling flow that has ended is told")
	}
}

// TestScan walks a table by steps of every size, with gaps, while sessions end.
func TestScan(t *testing.T) {
	for step := 1; step < 12; step++ {
		table := newTable(t, Config{})
		want := make(map[ID]bool)
		for i := range 10 {
			want[openSession(t, table, i)] = true
		}
		for i := range 5 {
			if _, ok := table.End(benchKey(2*i), nil); !ok {
				t.Fatal("no flow")
			}
		}
		for id := range want {
			_, want[id] = table.Session(id)
		}
		got := make(map[ID]int)
		var sessions []Session
		var at Cursor
		for {
			sessions, at = table.Scan(at, step, sessions[:0])
			for _, s := range sessions {
				got[s.ID]++
			}
			if at == 0 {
				break
			}
		}
		for id, lives := range want {
			if n := got[id]; lives && n != 1 || !lives && n != 0 {
				t.Errorf("by %d: %v met %d times, lives %v", step, id, n, lives)
			}
		}
	}
	if sessions, at := newTable(t, Config{}).Scan(0, 5, nil); sessions != nil || at != 0 {
		t.Errorf("an empty table has %v, goes on at %d", sessions, at)
	}
}

// TestPurgeIsBounded holds that no step does more than its budget allows, and that the steps together remove everything.
func TestPurgeIsBounded(t *testing.T) {
	for _, budget := range []int{1, 2, 7, 64} {
		table := fill(t, 4000, 4)
		late := start().Add(time.Hour)
		steps := 0
		for table.Stats().Flows > 0 {
			actions := table.Purge(late, budget, nil)
			// A flow is an action, and at most each flow is the last of a session.
			if len(actions) > 2*budget {
				t.Fatalf("%d actions with budget %d", len(actions), budget)
			}
			if steps++; steps > 2*4000/budget+2 {
				t.Fatalf("%d flows left after %d steps of %d", table.Stats().Flows, steps, budget)
			}
		}
		if s := table.Stats(); s.Purged != 4000 || s.Over != 1000 || s.Sessions+s.Clients != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestInactiveIsCounted holds that a round of purging counts what is inactive and not yet overdue.
func TestInactiveIsCounted(t *testing.T) {
	table := newTable(t, Config{})
	for i := range 10 {
		openSession(t, table, i)
	}
	now := start().Add(70 * time.Second)
	for i := range 4 {
		if _, _, ok := table.Touch(now, benchKey(i), nil); !ok {
			t.Fatal("unknown")
		}
	}
	for range 4 {
		if a := table.Purge(now, 5, nil); a != nil {
			t.Fatalf("purged %v", a)
		}
	}
	if got := table.Stats().Inactive; got != 6 {
		t.Errorf("%d inactive, want 6", got)
	}
}

// TestAllocates holds that what happens to each packet allocates nothing.
func TestAllocates(t *testing.T) {
	table := fill(t, 4096, 4)
	id := openSessionIn(t, table)
	buffer := make([]Action, 0, 16)
	pattern := []Announcement{{netip.AddrPortFrom(benchKey(0).Client.Addr(), 0), netip.MustParseAddrPort("203.0.113.9:7"), 17, "rtp"}}
	packet := Key{netip.AddrPortFrom(benchKey(0).Client.Addr(), 77), pattern[0].Server, 17}
	now := start()
	for what, do := range map[string]func(){
		"lookup":  func() { table.Lookup(now, benchKey(5)) },
		"unknown": func() { table.Lookup(now, packet) },
		"touch":   func() { _, _, _ = table.Touch(now, benchKey(5), buffer) },
		"seen":    func() { _, _ = table.Seen(now, benchKey(5), buffer) },
		"server":  func() { table.ServerOf(packet.Client.Addr()) },
		"purge":   func() { table.Purge(now, 64, buffer) },
		"announce": func() {
			if _, err := table.Announce(now, id, pattern, buffer); err != nil {
				t.Error(err)
			}
			if _, _, ok := table.Touch(now, packet, buffer); !ok {
				t.Error("unknown")
			}
			if _, ok := table.End(packet, buffer); !ok {
				t.Error("unknown")
			}
		},
	} {
		do()
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

// openSessionIn makes room for announcements in a full table, and returns the session.
func openSessionIn(tb testing.TB, table *Table) ID {
	tb.Helper()
	f, ok := table.Lookup(start(), benchKey(0))
	if !ok {
		tb.Fatal("unknown")
	}
	if _, err := table.WithdrawAll(f.Session, nil); err != nil {
		tb.Fatal(err)
	}
	return f.Session
}

// TestMemory holds the figure: at most 200 bytes for a flow with its share of session, client and indexes, here each of its own. More
// flows to a session take less: BenchmarkMemory.
func TestMemory(t *testing.T) {
	if underRace {
		t.Skip("the race detector keeps more about memory than the memory is")
	}
	if testing.Short() {
		t.Skip("fills a table of a million flows")
	}
	if got := bytesPerFlow(t, 1, 1); got > 200 {
		t.Errorf("%.1f bytes for a flow", got)
	}
}

func TestStrings(t *testing.T) {
	for got, want := range map[fmt.Stringer]string{
		Identity(9):   "identity 9",
		Status(9):     "status 9",
		ActionKind(9): "action 9",
		ID(3<<32 | 4): "session 4.3",
	} {
		if got.String() != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

// TestFree holds that a table that has given its memory back is empty, and that nothing reaches for what is gone.
func TestFree(t *testing.T) {
	table, err := New(start(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	id := openSession(t, table, 0)
	if err := table.Name(id, "x"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to free
		if err := table.Free(); err != nil {
			t.Fatal(err)
		}
	}
	if s := table.Stats(); s != (Stats{}) {
		t.Errorf("stats %+v", s)
	}
	key := benchKey(0)
	if _, _, err := table.Open(start(), key, Terms{}, nil); !errors.Is(err, ErrFull) {
		t.Errorf("open: error %v, want ErrFull", err)
	}
	if _, err := table.Announce(start(), id, nil, nil); !errors.Is(err, ErrNoSession) {
		t.Errorf("announce: error %v, want ErrNoSession", err)
	}
	_, looked := table.Lookup(start(), key)
	_, _, touched := table.Touch(start(), key, nil)
	_, ended := table.End(key, nil)
	_, is := table.Session(id)
	_, named := table.Named("x")
	_, served := table.ServerOf(key.Client.Addr())
	if looked || touched || ended || is || named || served || table.Unname("x") {
		t.Error("something is there")
	}
	if actions := table.Purge(start().Add(time.Hour), 256, nil); len(actions) > 0 {
		t.Errorf("purged %v", actions)
	}
	if sessions, at := table.Scan(0, 10, nil); len(sessions) > 0 || at != 0 {
		t.Errorf("scan found %v", sessions)
	}
}
