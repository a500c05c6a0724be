// SPDX-License-Identifier: Apache-2.0

package load

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/vitals"
)

func start() time.Time { return time.Unix(1_800_000_000, 0) }

func after(ms int) time.Time { return start().Add(time.Duration(ms) * time.Millisecond) }

func manager(t testing.TB, c Config) *Manager {
	t.Helper()
	m, err := NewManager(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func vector(host uint32, seq uint16, cpu float64) vitals.Vector {
	return vitals.Vector{
		Host: host, Seq: seq, Interval: 100 * time.Millisecond,
		Shares: [vitals.Parts]vitals.Share{vitals.ShareOf(cpu), vitals.Unknown, vitals.Unknown, vitals.Unknown, vitals.Unknown, vitals.Unknown},
	}
}

// TestMonitorFails: no vector for three times the interval that the last one stated means that the monitor has failed (SARA 29).
func TestMonitorFails(t *testing.T) {
	m := manager(t, Config{Interval: 50 * time.Millisecond})
	m.Add(start(), 1)
	m.Add(start(), 2)
	if _, ok := m.Load(1); ok {
		t.Error("a load before any vector")
	}
	if events := m.Report(after(10), vector(1, 9, 0.5)); len(events) != 0 {
		t.Errorf("%+v at the first vector", events)
	}
	if next := m.Deadline(); !next.Equal(after(150)) {
		t.Errorf("deadline %v, want that of host 2, 150ms", next.Sub(start()))
	}
	if d := cmp.Diff([]Event{{Host: 2, Failed: true, At: after(150)}}, m.Tick(after(200))); d != "" {
		t.Errorf("host 2 was never heard (-want +got):\n%s", d)
	}
	if events := m.Tick(after(309)); len(events) != 0 {
		t.Errorf("%+v after 299 ms of silence", events)
	}
	if l, ok := m.Load(1); l != 0.5 || !ok {
		t.Errorf("load %v %v, want 0.5", l, ok)
	}
	if d := cmp.Diff([]Event{{Host: 1, Failed: true, At: after(310)}}, m.Tick(after(310))); d != "" {
		t.Errorf("after 300 ms of silence (-want +got):\n%s", d)
	}
	if _, ok := m.Load(1); ok {
		t.Error("the load of a host whose monitor has failed")
	}
	if next := m.Deadline(); !next.IsZero() {
		t.Errorf("deadline %v when all have failed", next)
	}
	if d := cmp.Diff([]Event{{Host: 1, At: after(400)}}, m.Report(after(400), vector(1, 0, 0.7))); d != "" {
		t.Errorf("back (-want +got):\n%s", d)
	}
	if l, ok := m.Load(1); l != 0.7 || !ok {
		t.Errorf("load %v %v, want 0.7", l, ok)
	}
}

func TestBlindReceiver(t *testing.T) {
	m := manager(t, Config{})
	m.Add(start(), 1)
	m.Report(start(), vector(1, 1, 0.5))
	m.Blind(after(200), after(1200))
	m.Blind(after(200), after(100))
	if events := m.Tick(after(1299)); len(events) != 0 {
		t.Errorf("%+v: nobody had the time to be heard", events)
	}
	if events := m.Tick(after(1300)); len(events) != 1 {
		t.Errorf("%+v, want one", events)
	}
}

func TestOvertakenVectors(t *testing.T) {
	m := manager(t, Config{})
	m.Add(start(), 1)
	for _, tt := range []struct {
		name string
		seq  uint16
		cpu  float64
		want float64
	}{
		{"first", 65535, 0.1, 0.1},
		{"numbers come round", 0, 0.2, 0.2},
		{"one was lost", 2, 0.3, 0.3},
		{"overtaken", 1, 0.9, 0.3},
		{"the next", 3, 0.4, 0.4},
		{"the sender has started again", 40000, 0.5, 0.4},
		{"and goes on", 40001, 0.6, 0.6},
	} {
		m.Report(start(), vector(1, tt.seq, tt.cpu))
		if l, _ := m.Load(1); l != tt.want {
			t.Errorf("%s: load %v, want %v", tt.name, l, tt.want)
		}
	}
}

// TestNothingKnown: a host that cannot tell anything is not an idle host.
func TestNothingKnown(t *testing.T) {
	m := manager(t, Config{Weights: vitals.Weights{vitals.Memory: 1}})
	m.Add(start(), 1)
	m.Report(start(), vector(1, 1, 0.5))
	if l, ok := m.Load(1); ok {
		t.Errorf("load %v of a vector without memory", l)
	}
}

func TestHosts(t *testing.T) {
	m := manager(t, Config{})
	m.Add(start(), 2)
	m.Add(start(), 1)
	m.Report(start(), vector(1, 1, 0.5))
	m.Add(after(1000), 1)
	if s, ok := m.Sample(1); !ok || !s.At.Equal(start()) {
		t.Errorf("%+v %v: adding a host again has changed it", s, ok)
	}
	if events := m.Report(start(), vector(3, 1, 0.5)); len(events) != 0 {
		t.Errorf("%+v of a stranger", events)
	}
	m.Remove(2)
	if d := cmp.Diff([]uint32{1}, m.Hosts()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestManagerConfig(t *testing.T) {
	for want, c := range map[string]Config{
		"weight of io: 2":  {Weights: vitals.Weights{vitals.IO: 2}},
		"weight of cpu: -": {Weights: vitals.Weights{-0.5, 1}},
		"misses: -1":       {Misses: -1},
		"interval: 2m0s":   {Interval: 2 * time.Minute},
		"interval: -1ns":   {Interval: -1},
	} {
		if _, err := NewManager(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
