// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

func TestGauges(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	s.table.stats = forward.Stats{Flows: 7, Forwarded: 8, Full: 9, NoNode: 10, Refused: 11, Degraded: 12, Pressure: 0.5}
	var a fakeAgent
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	until(t, "b2 is up", s.backend("b2").up)
	s.backend("b1").active.Store(4)
	s.live.Load().services[0].active.Store(5)
	s.live.Load().pools["shop"].members[0].set(new(6), new(true), nil, time.Now())
	visit(t, cfg.Services[0].Addresses[0], "x.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })

	families, err := s.count.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			if m.GetGauge() == nil && !strings.Contains(f.GetName(), "packets") && !strings.Contains(f.GetName(), "table") {
				continue // counters that are tested with what they count
			}
			got = append(got, fmt.Sprintf("%s{%s} %v", strings.TrimPrefix(f.GetName(), "rehome_dispatcher_"), strings.Join(labels, ","),
				m.GetGauge().GetValue()+m.GetCounter().GetValue()))
		}
	}
	slices.Sort(got)
	want := []string{
		"backend_active{backend=b1} 4", "backend_active{backend=b2} 0",
		"backend_drained{backend=b1,pool=files} 0", "backend_drained{backend=b2,pool=files} 0", "backend_drained{backend=b2,pool=shop} 1",
		"backend_up{backend=b1} 0", "backend_up{backend=b2} 1",
		"backend_weight{backend=b1,pool=files} 1", "backend_weight{backend=b2,pool=files} 1", "backend_weight{backend=b2,pool=shop} 6",
		"degraded_packets_total{} 12", "flows_max{} 1.048576e+06", "flows{} 7", "forwarded_packets_total{} 8", "peeking{service=web} 1",
		"refused_packets_total{} 11", "service_active{service=web} 5", "table_full_total{} 9", "table_pressure{} 0.5", "unreachable_packets_total{} 10",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestGaugesReported tells how many connections a backend says it has, for as long as it says something.
func TestGaugesReported(t *testing.T) {
	d, _ := managed(t, func(*Config) {})
	reported := func() map[string]float64 {
		families, err := d.count.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := map[string]float64{}
		for _, f := range families {
			if f.GetName() == "rehome_dispatcher_backend_reported_sessions" {
				for _, m := range f.GetMetric() {
					values[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
				}
			}
		}
		return values
	}
	if got := reported(); len(got) > 0 {
		t.Errorf("nothing was reported, and %v", got)
	}
	d.management.reported(uint32(d.backend("b1").node), load.Sample{Load: 0.5, Vector: vitals.Vector{Sessions: 17}})
	if diff := cmp.Diff(map[string]float64{"b1": 17}, reported()); diff != "" {
		t.Error(diff)
	}
}

// TestGaugesAdmission tells what the last decision went by and what it refuses, and counts decisions.
func TestGaugesAdmission(t *testing.T) {
	d, path := managed(t, func(c *Config) {
		c.Admission = AdmissionConfig{Policy: admission.SA2C, Alpha: 1, T1: 0.5, T2: 0.6, T3: 0.7, C: 0.9, Fixed: true, Interval: time.Minute}
	})
	for _, b := range []string{"b1", "b2"} {
		available(d, b, availability.Up)
		report(d, b, 0.8, 0.8)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.management.decide(ctx) }()
	shown := func() []string {
		families, err := d.count.registry.Gather()
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, f := range families {
			name, ok := strings.CutPrefix(f.GetName(), "rehome_dispatcher_admission_")
			for _, m := range f.GetMetric() {
				if !ok {
					continue
				}
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				got = append(got, fmt.Sprintf("%s: %.2f", name, m.GetGauge().GetValue()+m.GetCounter().GetValue()))
				name, _, _ = strings.Cut(name, " ")
			}
		}
		return got
	}
	until(t, "it decides", func() bool { return strings.HasPrefix(shown()[0], "decisions") })
	// x = 0.8 is in the middle between T3 and C.
	want := []string{
		"decisions_total degrading: 1.00", "load: 0.80", "refused_share established: 0.50", "refused_share new: 1.00",
		"threshold c: 0.90", "threshold t1: 0.50", "threshold t2: 0.60", "threshold t3: 0.70",
	}
	if diff := cmp.Diff(want, shown()); diff != "" {
		t.Error(diff)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for e, a := range path.refuses { // a dispatcher that ends refuses nothing
		if a != (forward.Admission{}) {
			t.Errorf("%v: %+v", e, a)
		}
	}
}

// TestGaugesBeforeRun asks before there is anything to tell.
func TestGaugesBeforeRun(t *testing.T) {
	if _, err := New(standing(t), nil).count.registry.Gather(); err != nil {
		t.Error(err)
	}
}
