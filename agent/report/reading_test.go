// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/vitals"
)

func ptr[T any](v T) *T { return &v }

func addresses(texts ...string) (all []netip.AddrPort) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddrPort(text))
	}
	return all
}

// TestShares works the parts out by hand, for two readings 200 ms apart.
func TestShares(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	last := &reading{
		at: start, cpu: &cpuTimes{busy: 1000, total: 4000}, stalledIO: ptr(10 * time.Second), stalledMemory: ptr(time.Second),
		disks: map[string]uint32{"vda": 5000, "vdb": 1<<32 - 10, "gone": 7},
	}
	full := reading{
		at: start.Add(200 * time.Millisecond), cpu: &cpuTimes{busy: 1030, total: 4040}, memory: &memory{total: 1000, available: 600},
		network: []fill{{pages: 10, limit: 1000}, {pages: 30, limit: 100}}, stalledIO: ptr(10*time.Second + 50*time.Millisecond),
		stalledMemory: ptr(time.Second), listened: true, listeners: []listener{
			{addr: netip.MustParseAddrPort("0.0.0.0:80"), waiting: 32, room: 128},
			{addr: netip.MustParseAddrPort("0.0.0.0:81"), waiting: 128, room: 128}, // another's
		},
	}
	none := [vitals.Parts]vitals.Share{vitals.Unknown, vitals.Unknown, vitals.Unknown, vitals.Unknown, vitals.Unknown, vitals.Unknown}
	with := func(part vitals.Part, share float64) [vitals.Parts]vitals.Share {
		parts := none
		parts[part] = vitals.ShareOf(share)
		return parts
	}
	for _, tt := range []struct {
		name string
		now  reading
		want [vitals.Parts]vitals.Share
	}{
		// cpu 30/40, memory 1-600/1000, network 30/100, io 50/200, backlog 32/128
		{"all", full, [vitals.Parts]vitals.Share{7500, 4000, 3000, 2500, 2500, vitals.Unknown}},
		{"nothing", reading{at: full.at}, none},
		{"processors' time goes back", reading{at: full.at, cpu: &cpuTimes{busy: 900, total: 4040}}, none},
		{"no time passed", reading{at: start, cpu: &cpuTimes{busy: 1000, total: 4000}, stalledIO: last.stalledIO}, none},
		// all waited for memory in 150 of 200 ms, although 60 % is available
		{"thrashing", reading{at: full.at, memory: full.memory, stalledMemory: ptr(1150 * time.Millisecond)}, with(vitals.Memory, 0.75)},
		// without pressure: vda was busy for 40 of 200 ms, vdb for 100: its counter has come round
		{"disks", reading{at: full.at, disks: map[string]uint32{"vda": 5040, "vdb": 90, "new": 9000}}, with(vitals.IO, 0.5)},
		{"more than the limit", reading{at: full.at, network: []fill{{pages: 300, limit: 100}}}, with(vitals.Network, 1)},
		{"pressure is counted twice", reading{at: full.at, stalledIO: ptr(11 * time.Second)}, with(vitals.IO, 1)},
		{"one too many waits", reading{at: full.at, listened: true, listeners: []listener{
			{addr: netip.MustParseAddrPort("192.0.2.1:80"), waiting: 6, room: 5},
		}}, with(vitals.Backlog, 1)},
		{"backlog of 0", reading{at: full.at, listened: true, listeners: []listener{
			{addr: netip.MustParseAddrPort("192.0.2.1:80")},
		}}, with(vitals.Backlog, 0)},
	} {
		if d := cmp.Diff(tt.want, shares(last, &tt.now, addresses("192.0.2.1:80"))); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestMissing(t *testing.T) {
	watched := addresses("192.0.2.1:80", "192.0.2.1:443")
	now := &reading{listened: true, listeners: []listener{{addr: netip.MustParseAddrPort("[::]:80")}}}
	if d := cmp.Diff(watched[1:], missing(now, watched), cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if got := missing(&reading{}, watched); got != nil {
		t.Errorf("%v are missing when nothing could be read", got)
	}
}

func TestState(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, tt := range []struct {
		name  string
		state state
		flag  vitals.Flag
		at    time.Time
	}{
		{"available", state{}, vitals.Available, now},
		{"down", state{word: word{Down: map[string]bool{"web": true}}}, vitals.ApplicationDown, now},
		{"nobody listens", state{deserted: true}, vitals.ApplicationDown, now},
		{"planned", state{word: word{Failure: now.Add(time.Hour)}}, vitals.PlannedFailure, now.Add(time.Hour)},
		{"planned, for long ago", state{word: word{Failure: now.Add(-time.Hour)}}, vitals.PlannedFailure, now},
		{"planned, for next year", state{word: word{Failure: now.AddDate(1, 0, 0)}}, vitals.PlannedFailure, now.Add(vitals.MaxPlan)},
		{"planned, and down already", state{word: word{Failure: now.Add(time.Hour), Down: map[string]bool{"web": true}}}, vitals.ApplicationDown, now},
	} {
		flag, stamp := tt.state.heartbeat(now)
		if flag != tt.flag || !vitals.TimeOf(stamp, now).Equal(tt.at) {
			t.Errorf("%s: %v at %v, want %v at %v", tt.name, flag, vitals.TimeOf(stamp, now), tt.flag, tt.at)
		}
	}
	for _, tt := range []struct {
		loads map[string]float64
		want  vitals.Share
	}{
		{nil, vitals.Unknown},
		{map[string]float64{"a": math.NaN()}, vitals.Unknown},
		{map[string]float64{"a": 0.2, "b": 0.7, "c": math.NaN()}, 7000},
		{map[string]float64{"a": -1}, 0},
	} {
		if got := (&word{Loads: tt.loads}).application(); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.loads, got, tt.want)
		}
	}
}
