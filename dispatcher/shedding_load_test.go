// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/load"
)

// TestSheddingMeasured holds that shedding goes by what is reported: while a load falls because of moves, its forecast is below what it comes to, and a server would
// stop too early.
func TestSheddingMeasured(t *testing.T) {
	d, _ := hot(t)
	report(d, "b1", 0.95, 0.9, 0.8, 0.7)
	node := d.backend("b1").node
	if forecast := d.management.of(node).load; forecast >= 0.7 {
		t.Fatalf("the forecast is %v, and nothing is tested", forecast)
	}
	servers, look := d.management.shedder.servers()
	for _, s := range servers {
		if s.Host == uint32(node) && s.Load != 0.7 {
			t.Errorf("load %v, want the reported 0.7", s.Load)
		}
	}
	if !look || len(servers) != 3 {
		t.Errorf("look %t, %d servers", look, len(servers))
	}
}

// TestAnnouncedFailure: with and without shedding, a server that has announced its failure gives away all that can move, and gets nothing; one that
// is being drained moves its connections itself.
func TestAnnouncedFailure(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sheds   bool
		prepare func(d *Dispatcher)
		moves   int
		leaving bool
	}{
		{"announced", true, func(*Dispatcher) {}, 4, true},
		{"without shedding", false, func(*Dispatcher) {}, 4, true},
		{"without a known load", false, func(d *Dispatcher) {
			d.management.loadChanged(load.Event{Host: uint32(d.backend("b1").node), Failed: true})
		}, 4, true},
		{"called off", false, func(d *Dispatcher) { available(d, "b1", availability.Up) }, 0, false},
		{"drained", false, func(d *Dispatcher) { d.backend("b1").draining.Store(true) }, 0, true},
		{"over", false, func(d *Dispatcher) { available(d, "b1", availability.Down) }, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := hot(t)
			d.cfg.Shedding.Enabled = tt.sheds
			b := d.backend("b1")
			report(d, "b1", 0.3)
			d.management.changed(availability.Event{Host: uint32(b.node), To: availability.Draining, FailsAt: time.Now().Add(time.Minute)})
			tt.prepare(d)
			s := d.management.shedder
			var err error
			if s.shedder, err = load.NewShedder(d.cfg.Shedding.shedder()); err != nil {
				t.Fatal(err)
			}
			servers, look := s.servers()
			if look != (tt.moves > 0) {
				t.Errorf("look: %t", look)
			}
			if err := s.fill(time.Now(), servers); err != nil {
				t.Fatal(err)
			}
			moves := s.shedder.Plan(time.Now(), servers)
			if len(moves) != tt.moves || b.leaving() != tt.leaving {
				t.Errorf("%d moves, want %d; leaving %t, want %t", len(moves), tt.moves, b.leaving(), tt.leaving)
			}
			for _, m := range moves {
				if m.From != uint32(b.node) || m.To != uint32(d.backend("b2").node) {
					t.Errorf("%+v: want it from b1 to b2, which serves the same", m)
				}
			}
		})
	}
}
