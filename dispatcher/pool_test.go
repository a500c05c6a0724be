// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/balance"
)

// TestLastResort: a host of which nothing is heard gets connections only when no other host is left, and its agent is there.
func TestLastResort(t *testing.T) {
	down := func(d *Dispatcher, cause string) {
		d.management.changed(availability.Event{Host: uint32(d.backend("b1").node), To: availability.Down, Cause: cause})
	}
	drain := func(d *Dispatcher) { d.backend("b2").draining.Store(true) }
	for _, tt := range []struct {
		name    string
		prepare func(d *Dispatcher)
		want    string
	}{
		{"another one is there", func(d *Dispatcher) { down(d, "silence") }, "b2"},
		{"no other one", func(d *Dispatcher) { down(d, "silence"); drain(d) }, "b1"},
		{"both are silent", func(d *Dispatcher) {
			down(d, "silence")
			d.management.changed(availability.Event{Host: uint32(d.backend("b2").node), To: availability.Down, Cause: "silence"})
		}, "b1 or b2"},
		{"its agent is away", func(d *Dispatcher) { down(d, "silence"); drain(d); d.backend("b1").link = nil }, ""},
		{"it has failed as announced", func(d *Dispatcher) { down(d, "the announced time has come"); drain(d) }, ""},
		{"its application is down", func(d *Dispatcher) { available(d, "b1", availability.ApplicationDown); drain(d) }, ""},
		{"it is drained, too", func(d *Dispatcher) { down(d, "silence"); drain(d); d.backend("b1").draining.Store(true) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := managed(t, func(*Config) {})
			available(d, "b1", availability.Up)
			available(d, "b2", availability.Up)
			tt.prepare(d)
			for range 4 { // in turns
				m := d.live.Load().pools["both"].member(time.Now(), balance.Visit{}, nil)
				got := ""
				if m != nil {
					got = m.name
				}
				if got != tt.want && (tt.want != "b1 or b2" || got == "") {
					t.Fatalf("%q gets it, want %q", got, tt.want)
				}
			}
		})
	}
}

// TestLastResortTried: who has failed to take the connection is not asked again.
func TestLastResortTried(t *testing.T) {
	d, _ := managed(t, func(*Config) {})
	d.management.changed(availability.Event{Host: uint32(d.backend("b1").node), To: availability.Down, Cause: "silence"})
	p := d.live.Load().pools["both"]
	if m := p.member(time.Now(), balance.Visit{}, []*member{p.members[1]}); m != p.members[0] {
		t.Errorf("%v gets it", m)
	}
	if m := p.member(time.Now(), balance.Visit{}, p.members); m != nil {
		t.Errorf("%s gets it again", m.name)
	}
}
