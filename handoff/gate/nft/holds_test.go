// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestHolds(t *testing.T) {
	h := newHolds()
	start := time.Unix(1000, 0)
	h.held[flow4()] = hold{until: start.Add(time.Second)}
	h.held[flow6()] = hold{until: start.Add(2 * time.Second)}
	h.strays[flow6()] = stray{to: 1, until: start.Add(time.Second)}
	for _, c := range []struct {
		after  time.Duration
		lapsed []tcprepair.Flow
		held   int
		strays int
	}{
		{0, nil, 2, 1},
		{time.Second - 1, nil, 2, 1},
		{time.Second, []tcprepair.Flow{flow4()}, 1, 0},
		{time.Second, nil, 1, 0},
		{time.Hour, []tcprepair.Flow{flow6()}, 0, 0},
	} {
		got := h.lapse(start.Add(c.after))
		if diff := cmp.Diff(c.lapsed, got, cmp.Comparer(func(a, b tcprepair.Flow) bool { return a == b })); diff != "" {
			t.Errorf("after %v: %s", c.after, diff)
		}
		if len(h.held) != c.held || len(h.strays) != c.strays {
			t.Errorf("after %v: %d held, %d strays, want %d and %d", c.after, len(h.held), len(h.strays), c.held, c.strays)
		}
	}
	if h.isHeld(flow4()) {
		t.Error("held after it lapsed")
	}
}

func TestUnchanged(t *testing.T) {
	l := newLedger()
	l.flows[flow4()] = gate.RouteInfo{Node: 1, Epoch: 2}
	l.flows[flow6()] = gate.RouteInfo{Epoch: 2}
	before := map[tcprepair.Flow]gate.RouteInfo{flow4(): l.flows[flow4()], flow6(): l.flows[flow6()]}
	if got := l.unchanged(before); len(got) != 1 || got[0] != flow4() {
		t.Errorf("unchanged: %v, want the flow of another node", got)
	}
	if n := l.elsewhere(); n != 1 {
		t.Errorf("%d flows elsewhere, want 1", n)
	}
	l.flows[flow4()] = gate.RouteInfo{Node: 1, Epoch: 3}
	if got := l.unchanged(before); len(got) != 0 {
		t.Errorf("unchanged after a commit: %v", got)
	}
}
