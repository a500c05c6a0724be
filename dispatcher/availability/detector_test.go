// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/vitals"
)

func detector(t testing.TB, c Config) *Detector {
	t.Helper()
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConfig(t *testing.T) {
	want := Config{Interval: DefaultInterval, Misses: 3, Rise: 3}
	if d := cmp.Diff(want, detector(t, Config{}).Config()); d != "" {
		t.Errorf("defaults (-want +got):\n%s", d)
	}
	for want, c := range map[string]Config{
		"interval: 1µs: want 1ms or more": {Interval: time.Microsecond},
		"interval: -1ns":                  {Interval: -1},
		"misses: 1: want 2 or more":       {Misses: 1},
		"misses: -3":                      {Misses: -3},
		"rise: -1":                        {Rise: -1},
	} {
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestStates(t *testing.T) {
	for _, tt := range []struct {
		state        State
		text         string
		takes, serve bool
	}{
		{Unknown, "unknown", false, false},
		{Up, "up", true, true},
		{Draining, "draining", false, true},
		{ApplicationDown, "application down", false, false},
		{Down, "down", false, false},
		{9, "state 9", false, false},
	} {
		if tt.state.String() != tt.text || tt.state.TakesSessions() != tt.takes || tt.state.Serves() != tt.serve {
			t.Errorf("%v: takes %v, serves %v", tt.state, tt.state.TakesSessions(), tt.state.Serves())
		}
	}
}

// TestAddTwice: a reload that adds a host again does not forget what is known of it.
func TestAddTwice(t *testing.T) {
	d := detector(t, Config{})
	d.Add(start(), 1)
	d.Beat(Beat{Heartbeat: vitals.Heartbeat{Host: 1, Flag: vitals.Available}, At: start(), Sent: start()})
	d.Add(start().Add(time.Hour), 1)
	if s, ok := d.Status(1); !ok || s.State != Up || !s.Since.Equal(start()) {
		t.Errorf("%+v %v, want up", s, ok)
	}
	d.Remove(1)
	if s, ok := d.Status(1); ok {
		t.Errorf("%+v of a host that was removed", s)
	}
	if events := d.Tick(start().Add(2 * time.Hour)); len(events) != 0 {
		t.Errorf("%+v of no host", events)
	}
}

// TestRandomTraffic compares with what the definition says: a host of which something arrived within n·d, and that is not planned to
// fail, is never down for silence; one of which nothing did is.
func TestRandomTraffic(t *testing.T) {
	const interval = 10 * time.Millisecond
	r := rand.New(rand.NewPCG(4, 26))
	for range 200 {
		d := detector(t, Config{Interval: interval, Rise: 1})
		now, last := start(), start()
		d.Add(now, 1)
		down := false
		for seq := range uint16(300) {
			now = now.Add(time.Duration(r.Int64N(int64(8 * time.Millisecond))))
			for _, e := range d.Tick(now) {
				if e.To == Down {
					if !e.At.Equal(last.Add(3 * interval)) {
						t.Fatalf("down at %v, last heard %v", e.At, last)
					}
					down = true
				}
			}
			if silent := now.Sub(last) >= 3*interval; silent != down {
				t.Fatalf("silent for %v, down: %v", now.Sub(last), down)
			}
			if next := d.Deadline(); !down && !next.Equal(last.Add(3*interval)) {
				t.Fatalf("deadline %v after the last heartbeat", next.Sub(last))
			}
			if r.IntN(4) > 0 {
				continue
			}
			flag := vitals.Available + vitals.Flag(r.IntN(2))
			d.Beat(Beat{Heartbeat: vitals.Heartbeat{Host: 1, Seq: seq, Flag: flag, Stamp: vitals.StampOf(now)}, At: now, Sent: now})
			last, down = now, false
			want := map[vitals.Flag]State{vitals.Available: Up, vitals.ApplicationDown: ApplicationDown}[flag]
			if s, _ := d.Status(1); s.State != want {
				t.Fatalf("%v after %v", s.State, flag)
			}
		}
	}
}

// TestManyHosts: events come in the order of time, each host's own.
func TestManyHosts(t *testing.T) {
	d := detector(t, Config{Interval: time.Second})
	for id := range uint32(100) {
		d.Add(start().Add(time.Duration(id%10)*time.Millisecond), id)
	}
	events := d.Tick(start().Add(time.Minute))
	if len(events) != 100 {
		t.Fatalf("%d events, want 100", len(events))
	}
	for i := 1; i < len(events); i++ {
		if a, b := events[i-1], events[i]; b.At.Before(a.At) || b.At.Equal(a.At) && b.Host <= a.Host {
			t.Fatalf("%+v before %+v", a, b)
		}
	}
}

// FuzzBeats holds that no sequence of genuine heartbeats puts a detector into a state that its drawing does not have.
func FuzzBeats(f *testing.F) {
	f.Add([]byte{0, 1, 1, 10, 2, 3, 30, 9, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := detector(t, Config{Interval: 10 * time.Millisecond})
		now := start()
		d.Add(now, 1)
		for ; len(b) >= 3; b = b[3:] {
			now = now.Add(time.Duration(b[0]) * time.Millisecond)
			beat := vitals.Heartbeat{Host: 1, Seq: uint16(b[1]) << 7, Flag: vitals.Flag(b[2]%3 + 1), Stamp: vitals.StampOf(now) + uint32(b[1])}
			before, _ := d.Status(1)
			events := append(d.Beat(Beat{Heartbeat: beat, At: now, Sent: now.Add(-time.Duration(b[2]) * time.Millisecond)}), d.Tick(now)...)
			for _, e := range events {
				if e.From != before.State || e.To == Unknown || e.To == e.From {
					t.Fatalf("%v became %v -> %v", before.State, e.From, e.To)
				}
				before.State = e.To
			}
			if after, _ := d.Status(1); after.State != before.State || after.State == Draining && !after.FailsAt.After(now) {
				t.Fatalf("%+v at %v, events told of %v", after, now, before.State)
			}
			if next := d.Deadline(); !next.IsZero() && !next.After(now) {
				t.Fatalf("the next deadline, %v, is over at %v", next, now)
			}
		}
	})
}

func BenchmarkBeat(b *testing.B) {
	d := detector(b, Config{})
	for id := range uint32(1000) {
		d.Add(start(), id)
	}
	now := start()
	var n uint32
	b.ReportAllocs()
	for b.Loop() {
		n++
		now = now.Add(time.Microsecond)
		d.Beat(Beat{Heartbeat: vitals.Heartbeat{Host: n % 1000, Seq: uint16(n / 1000), Flag: vitals.Available}, At: now, Sent: now})
	}
}
