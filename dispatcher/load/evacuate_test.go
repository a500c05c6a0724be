// SPDX-License-Identifier: Apache-2.0

package load

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestEvacuation: host 1 stands at 0.4, which is not hot, with four equal sessions of 0.1 each, and fails in ten minutes. Host 2 (0.60) takes the
// first one after host 3 (0.55): 0.55 -> 0.65, then 0.60 -> 0.70, then 0.65 -> 0.75, then 0.70 -> 0.80: in turns, and above Low.
func TestEvacuation(t *testing.T) {
	s := shedder(t, ShedConfig{})
	servers := []Server{
		{Host: 1, Load: 0.4, Fails: start().Add(10 * time.Minute), Sessions: sessions(10, 4)},
		{Host: 2, Load: 0.60, Takes: true},
		{Host: 3, Load: 0.55, Takes: true},
		{Host: 4, Takes: true, Fails: start().Add(time.Hour)},
		{Host: 5},
	}
	want := []Move{{10, 1, 3, 0.1}, {11, 1, 2, 0.1}, {12, 1, 3, 0.1}, {13, 1, 2, 0.1}}
	if d := cmp.Diff(want, s.Plan(start(), servers), cmpopts.EquateApprox(0, 1e-9)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := s.Plan(after(250), servers); len(got) != 0 {
		t.Errorf("%+v again, before the first moves can show", got)
	}
	// Two of them are still there when they should have gone, and one was refused.
	servers[0].Sessions = servers[0].Sessions[:3]
	s.Failed(11)
	if got := s.Plan(after(500), servers); len(got) != 1 || got[0].Session != 11 {
		t.Errorf("after a refusal: %+v", got)
	}
	servers[0].Sessions = servers[0].Sessions[:1]
	if got := s.Plan(after(1000), servers); len(got) != 1 || got[0].Session != 10 {
		t.Errorf("after Settle: %+v", got)
	}
}

// TestEvacuationCalledOff: what has not been told to leave stays, as long as its server is not hot.
func TestEvacuationCalledOff(t *testing.T) {
	s := shedder(t, ShedConfig{Rate: 5})
	servers := []Server{{Host: 1, Load: 0.8, Fails: start().Add(time.Hour), Sessions: sessions(1, 10)}, {Host: 2, Takes: true}}
	if got := s.Plan(start(), servers); len(got) != 5 {
		t.Errorf("%d moves, want those of a second", len(got))
	}
	servers[0].Fails, servers[0].Takes, servers[0].Sessions = time.Time{}, true, servers[0].Sessions[5:]
	for at := 250; at < 5000; at += 250 {
		if got := s.Plan(after(at), servers); len(got) != 0 {
			t.Fatalf("%+v after it was called off", got)
		}
	}
}

// TestEvacuationInTime: however slow the rate, all that can move has been told to 2 s before the announced time, or at once.
func TestEvacuationInTime(t *testing.T) {
	for _, tt := range []struct {
		name     string
		sessions int
		in, gone time.Duration
	}{
		{"the rate is enough", 100, 60 * time.Second, 21 * time.Second}, // 5 at once, then 5 a second: 19 s, and a look
		{"it is not", 1000, 12 * time.Second, 10 * time.Second},
		{"at the last moment", 1000, time.Second, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := shedder(t, ShedConfig{Rate: 5, Settle: time.Hour})
			servers := []Server{{Host: 1, Load: 0.5, Fails: start().Add(tt.in), Sessions: sessions(1, tt.sessions)}, {Host: 2, Takes: true}, {Host: 3, Takes: true}}
			told := map[uint32]int{}
			for at := time.Duration(0); at <= tt.gone; at += 250 * time.Millisecond {
				for _, m := range s.Plan(start().Add(at), servers) {
					told[m.To]++
				}
			}
			if told[2]+told[3] != tt.sessions || max(told[2]-told[3], told[3]-told[2]) > 1 {
				t.Errorf("%v of %d were told to leave within %v", told, tt.sessions, tt.gone)
			}
		})
	}
}

// TestEvacuationStays: what cannot be moved, or has nowhere to go, and a server whose time is over.
func TestEvacuationStays(t *testing.T) {
	fails := start().Add(time.Minute)
	just := Session{ID: 7, Weight: 1, Since: start()}
	for _, tt := range []struct {
		name    string
		servers []Server
		want    int
	}{
		{"one that has just come leaves", []Server{{Host: 1, Fails: fails, Sessions: []Session{just}}, {Host: 2, Load: 0.99, Takes: true}}, 1},
		{"to where no load is known", []Server{{Host: 1, Load: UnknownLoad, Fails: fails, Sessions: sessions(1, 3)}, {Host: 2, Load: UnknownLoad, Takes: true}}, 3},
		{"fixed", []Server{{Host: 1, Fails: fails, Sessions: []Session{{ID: 1, Weight: 1, Fixed: true}}}, {Host: 2, Takes: true}}, 0},
		{"nobody serves the same", []Server{{Host: 1, Fails: fails, Sessions: []Session{{ID: 1, Weight: 1, To: []uint32{3}}}}, {Host: 2, Takes: true}}, 0},
		{"all fail", []Server{{Host: 1, Fails: fails, Sessions: sessions(1, 3)}, {Host: 2, Fails: fails, Takes: true}}, 0},
		{"over", []Server{{Host: 1, Fails: start(), Sessions: sessions(1, 3)}, {Host: 2, Takes: true}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := shedder(t, ShedConfig{}).Plan(start(), tt.servers); len(got) != tt.want {
				t.Errorf("%+v, want %d moves", got, tt.want)
			}
		})
	}
}
