// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

const ms = time.Millisecond

func scheduler(t testing.TB, im netnslab.Impairment) *netnslab.Scheduler {
	t.Helper()
	s, err := netnslab.NewScheduler(im)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// frame is a full-sized packet.
func frame() netnslab.Packet { return netnslab.Packet{Size: 1500} }

func TestSchedulerTranscripts(t *testing.T) {
	at := func(times ...time.Duration) (v []netnslab.Verdict) {
		for _, d := range times {
			v = append(v, netnslab.Verdict{At: d})
		}
		return v
	}
	overflow := netnslab.Verdict{Fate: netnslab.Overflowed}
	for _, test := range []struct {
		name     string
		im       netnslab.Impairment
		arrivals []time.Duration
		want     []netnslab.Verdict
	}{
		{"nothing", netnslab.Impairment{}, []time.Duration{0, 1, 5 * ms}, at(0, 1, 5*ms)},
		{"delay", netnslab.Impairment{Delay: 10 * ms}, []time.Duration{0, ms, 1 * ms}, at(10*ms, 11*ms, 11*ms)},
		// 12 Mb/s is one full-sized packet per millisecond.
		{"rate", netnslab.Impairment{Rate: 12e6}, []time.Duration{0, 0, 0, 10 * ms, 10 * ms}, at(0, ms, 2*ms, 10*ms, 11*ms)},
		{"rate and delay", netnslab.Impairment{Rate: 12e6, Delay: 5 * ms}, []time.Duration{0, 0}, at(5*ms, 6*ms)},
		{"burst", netnslab.Impairment{Rate: 12e6, Burst: 3000}, []time.Duration{0, 0, 0, 0, 50 * ms, 50 * ms, 50 * ms}, at(0, 0, ms, 2*ms, 50*ms, 50*ms, 51*ms)},
		{
			"queue",
			netnslab.Impairment{Rate: 12e6, Queue: 3000},
			[]time.Duration{0, 0, 0, 0, ms, 1 * ms},
			append(append(at(0, ms, 2*ms), overflow), append(at(3*ms), overflow)...),
		},
		{"all lost", netnslab.Impairment{Loss: 1}, []time.Duration{0}, []netnslab.Verdict{{Fate: netnslab.Lost}}},
		{"all doubled", netnslab.Impairment{Duplicate: 1, Delay: ms}, []time.Duration{0}, []netnslab.Verdict{{At: ms, Duplicated: true}}},
		{
			"all reordered",
			netnslab.Impairment{Reorder: 1, Delay: ms, ReorderBy: 3 * ms},
			[]time.Duration{0},
			[]netnslab.Verdict{{At: 4 * ms, Reordered: true}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := scheduler(t, test.im)
			var got []netnslab.Verdict
			for _, now := range test.arrivals {
				got = append(got, s.Schedule(now, frame()))
			}
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("verdicts (-want +got):\n%s", d)
			}
		})
	}
}

func TestSchedulerSparesNeighbourDiscovery(t *testing.T) {
	s := scheduler(t, netnslab.Impairment{Loss: 1, Duplicate: 1, Reorder: 1, Delay: ms})
	if got, want := s.Schedule(0, netnslab.Packet{Size: 42, Neighbour: true}), (netnslab.Verdict{At: ms}); got != want {
		t.Errorf("ARP: %+v, want %+v", got, want)
	}
}

func TestSchedulerFrequencies(t *testing.T) {
	const n = 200_000
	im := netnslab.Impairment{Loss: 0.01, Reorder: 0.02, Duplicate: 0.03, Seed: 42}
	s := scheduler(t, im)
	var lost, reordered, doubled float64
	for i := range n {
		v := s.Schedule(time.Duration(i)*time.Microsecond, frame())
		switch {
		case v.Fate == netnslab.Lost:
			lost++
			continue
		case v.Reordered:
			reordered++
		}
		if v.Duplicated {
			doubled++
		}
	}
	for name, f := range map[string]struct{ got, want float64 }{
		"lost": {lost / n, im.Loss}, "reordered": {reordered / (n - lost), im.Reorder}, "doubled": {doubled / (n - lost), im.Duplicate},
	} {
		// Five standard deviations of a binomial proportion.
		if margin := 5 * math.Sqrt(f.want*(1-f.want)/n); math.Abs(f.got-f.want) > margin {
			t.Errorf("%s: %.5f, want %.3f within %.5f", name, f.got, f.want, margin)
		}
	}
}

func TestSchedulerIsDeterministic(t *testing.T) {
	im := netnslab.Impairment{Delay: ms, Jitter: 5 * ms, Loss: 0.1, Reorder: 0.1, Duplicate: 0.1, Rate: 1e9}
	run := func(seed uint64) (v []netnslab.Verdict) {
		im.Seed = seed
		s := scheduler(t, im)
		for i := range 1000 {
			v = append(v, s.Schedule(time.Duration(i)*10*time.Microsecond, frame()))
		}
		return v
	}
	if d := cmp.Diff(run(1), run(1)); d != "" {
		t.Errorf("the same seed twice:\n%s", d)
	}
	if cmp.Equal(run(1), run(2)) {
		t.Error("two seeds, one outcome")
	}
}

// Choices of one kind do not depend on the probability of another.
func TestSchedulerStreamsAreIndependent(t *testing.T) {
	losses := func(im netnslab.Impairment) (lost []int) {
		im.Loss, im.Seed = 0.05, 3
		s := scheduler(t, im)
		for i := range 2000 {
			// Nothing that is delivered changes what is lost: loss comes first.
			if s.Schedule(time.Duration(i), frame()).Fate == netnslab.Lost {
				lost = append(lost, i)
			}
		}
		return lost
	}
	if d := cmp.Diff(losses(netnslab.Impairment{}), losses(netnslab.Impairment{Reorder: 0.5, Duplicate: 0.5, Jitter: ms})); d != "" {
		t.Errorf("losses changed:\n%s", d)
	}
}

func TestJitterKeepsOrderAndVaries(t *testing.T) {
	const delay, jitter = 2 * ms, 5 * ms
	s := scheduler(t, netnslab.Impairment{Delay: delay, Jitter: jitter, Seed: 9})
	var last, sum time.Duration
	least, most := time.Hour, time.Duration(0)
	const n = 100_000
	for i := range n {
		now := time.Duration(i) * 100 * time.Microsecond
		at := s.Schedule(now, frame()).At
		if at < last {
			t.Fatalf("packet %d leaves at %v, before its predecessor at %v", i, at, last)
		}
		last = at
		d := at - now
		least, most, sum = min(least, d), max(most, d), sum+d
	}
	if least < delay || most > delay+jitter {
		t.Errorf("delays from %v to %v, want within %v and %v", least, most, delay, delay+jitter)
	}
	if least > delay+jitter/10 || most < delay+jitter*9/10 {
		t.Errorf("delays from %v to %v hardly vary", least, most)
	}
	if mean := sum / n; mean < delay+jitter*4/10 || mean > delay+jitter*6/10 {
		t.Errorf("mean delay %v, want about %v", mean, delay+jitter/2)
	}
}

func TestSetKeepsOrder(t *testing.T) {
	s := scheduler(t, netnslab.Impairment{Delay: 100 * ms})
	first := s.Schedule(0, frame())
	if err := s.Set(netnslab.Impairment{}); err != nil {
		t.Fatal(err)
	}
	if v := s.Schedule(ms, frame()); v.At < first.At {
		t.Errorf("a packet of 1 ms leaves at %v and overtakes one of 0 at %v", v.At, first.At)
	}
	if v := s.Schedule(200*ms, frame()); v.At != 200*ms {
		t.Errorf("the old delay is still felt: %v", v.At)
	}
	if err := s.Set(netnslab.Impairment{Loss: 2}); err == nil {
		t.Error("took a loss of 2")
	}
}

func TestImpairmentValidate(t *testing.T) {
	for _, test := range []struct {
		im   netnslab.Impairment
		want string
	}{
		{netnslab.Impairment{Loss: -0.1}, "loss"},
		{netnslab.Impairment{Loss: math.NaN()}, "loss"},
		{netnslab.Impairment{Reorder: 1.5}, "reorder"},
		{netnslab.Impairment{Duplicate: math.Inf(1)}, "duplicate"},
		{netnslab.Impairment{Delay: -1}, "delay"},
		{netnslab.Impairment{Jitter: time.Hour}, "jitter"},
		{netnslab.Impairment{ReorderBy: time.Hour}, "reorderBy"},
		{netnslab.Impairment{Rate: -1}, "rate"},
		{netnslab.Impairment{Burst: -1}, "burst"},
		{netnslab.Impairment{Queue: -1}, "queue"},
	} {
		if err := test.im.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one about %s", test.im, err, test.want)
		}
		if _, err := netnslab.NewScheduler(test.im); err == nil {
			t.Errorf("%+v: scheduler made", test.im)
		}
	}
}

// No input makes a packet leave before it came, or out of order without having been chosen for it.
func FuzzScheduler(f *testing.F) {
	f.Add(uint64(1), int64(1e6), int64(5e6), int64(1e9), 0.1, uint16(1500), uint16(100))
	f.Add(uint64(0), int64(0), int64(1), int64(1), 1.0, uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, seed uint64, delay, jitter, rate int64, p float64, size, step uint16) {
		s, err := netnslab.NewScheduler(netnslab.Impairment{
			Delay: time.Duration(delay), Jitter: time.Duration(jitter), Rate: rate, Reorder: p, Duplicate: p, Loss: p / 2, Seed: seed,
		})
		if err != nil {
			return
		}
		var now, last time.Duration
		for range 64 {
			v := s.Schedule(now, netnslab.Packet{Size: int(size)})
			if v.Fate == netnslab.Delivered {
				if v.At < now {
					t.Fatalf("came at %v, leaves at %v", now, v.At)
				}
				if !v.Reordered {
					if v.At < last {
						t.Fatalf("leaves at %v, its predecessor at %v", v.At, last)
					}
					last = v.At
				}
			}
			now += time.Duration(step)
		}
	})
}

func BenchmarkScheduler(b *testing.B) {
	s := scheduler(b, netnslab.Impairment{Delay: ms, Jitter: ms, Loss: 0.01, Reorder: 0.01, Duplicate: 0.01, Rate: 1e9})
	b.ReportAllocs()
	var now time.Duration
	for b.Loop() {
		now += 12 * time.Microsecond
		s.Schedule(now, frame())
	}
}

func ExampleScheduler() {
	// A link of 12 Mb/s, 10 ms long: full-sized packets leave a millisecond apart.
	s, err := netnslab.NewScheduler(netnslab.Impairment{Rate: 12e6, Delay: 10 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		fmt.Println(s.Schedule(0, netnslab.Packet{Size: 1500}).At)
	}
	// Output:
	// 10ms
	// 11ms
	// 12ms
}
