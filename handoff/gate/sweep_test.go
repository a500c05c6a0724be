// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

func sweepFlow(server string, i int) tcprepair.Flow {
	client := netip.MustParseAddr("10.0.0.2")
	if netip.MustParseAddrPort(server).Addr().Is6() {
		client = netip.MustParseAddr("fd00::2")
	}
	return tcprepair.NewFlow(netip.MustParseAddrPort(server), netip.AddrPortFrom(client, uint16(i+1)))
}

// adopt fills the tables with n flows of each family.
func adopt(t *testing.T, g *Gate, n int) {
	t.Helper()
	for i := range n {
		for _, server := range []string{"10.0.0.1:80", "[fd00::1]:80"} {
			if _, err := g.Adopt(sweepFlow(server, i), 1, 1); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func sweepAll(t *testing.T, g *Gate, idle time.Duration) gateSweep {
	t.Helper()
	s, err := g.table.sweep(idle, idle)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A sweep is many runs, looks at every entry once, and ends.
func TestSweepInRuns(t *testing.T) {
	const flows = 300
	g := network(t, 1)[0].gated(t)
	adopt(t, g, flows)
	s := gateSweep{Idle: uint64(time.Hour), Handshake: uint64(time.Hour), Mark: 7}
	runs := 0
	for s.Begun == 0 || s.Left != 0 {
		if err := g.table.sweepSome(&s); err != nil {
			t.Fatal(err)
		}
		if runs++; runs > flows {
			t.Fatalf("the sweep does not end: %+v", s)
		}
	}
	if s.Live != 2*flows || runs < 3 {
		t.Errorf("%d entries seen in %d runs, want %d in 3 or more", s.Live, runs, 2*flows)
	}
	for _, want := range []struct{ live, deleted uint32 }{{0, 0}, {0, 2 * flows}, {0, 0}} {
		if s := sweepAll(t, g, time.Nanosecond); s.Live != want.live || s.Deleted != want.deleted {
			t.Errorf("sweep of idle flows: live %d, deleted %d; want %+v", s.Live, s.Deleted, want)
		}
	}
	adopt(t, g, 1) // the same keys again
	if s := sweepAll(t, g, time.Hour); s.Live != 2 {
		t.Errorf("after deletion and return: live %d, want 2", s.Live)
	}
}

// What a process that died in the middle of a sweep has left in the queues disturbs no later one.
func TestSweepAfterDeath(t *testing.T) {
	const flows = 300
	g := network(t, 1)[0].gated(t)
	adopt(t, g, flows)
	for mark := range uint64(3) {
		s := gateSweep{Idle: uint64(time.Hour), Handshake: uint64(time.Hour), Mark: mark + 1}
		if err := g.table.sweepSome(&s); err != nil {
			t.Fatal(err)
		}
		if s.Left == 0 {
			t.Fatal("the sweep was over after one run")
		}
	}
	for range 2 {
		if s := sweepAll(t, g, time.Hour); s.Live != 2*flows {
			t.Errorf("live %d, want %d", s.Live, 2*flows)
		}
	}
}

// The entries of a version that had no queues are swept, too.
func TestSweepOlderPins(t *testing.T) {
	const flows = 200
	h := network(t, 1)[0]
	config := Config{Interfaces: []string{"eth0"}, PinPath: bpffs(t), MaxFlows: 1000}
	g, err := h.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	adopt(t, g, flows)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"keys4", "keys6"} {
		if err := os.Remove(filepath.Join(config.PinPath, name)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // the second time the queues are pinned as well
		if g, err = h.open(t, config); err != nil {
			t.Fatal(err)
		}
		if s := sweepAll(t, g, time.Hour); s.Live != 2*flows {
			t.Errorf("live %d, want %d", s.Live, 2*flows)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if g, err = h.open(t, config); err != nil {
		t.Fatal(err)
	}
	sweepAll(t, g, time.Nanosecond)
	if s := sweepAll(t, g, time.Nanosecond); s.Deleted != 2*flows {
		t.Errorf("deleted %d, want %d", s.Deleted, 2*flows)
	}
	if _, err := g.Route(sweepFlow("10.0.0.1:80", 0)); !errors.Is(err, ErrNoFlow) {
		t.Errorf("idle flow: %v", err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
}
