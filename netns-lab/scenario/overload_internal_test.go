// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"math"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// TestQueue: two workers of 10 ms. Requests come at the given times; when they are answered, how long the next would wait, and what has been done is
// worked out by hand.
func TestQueue(t *testing.T) {
	begin := time.Unix(1000, 0)
	q := newQueue(2, ms(10))
	for _, tt := range []struct{ at, answer, wait, done int }{
		{0, 10, 0, 0},    // the first worker: 0-10
		{2, 12, 8, 2},    // the second: 2-12; 2 ms of the first are done
		{4, 20, 8, 6},    // the first: 10-20; 4 and 2 are done
		{4, 22, 16, 6},   // the second: 12-22
		{15, 30, 7, 28},  // the first: 20-30; 15 and 13
		{40, 50, 0, 50},  // all was over; five requests of 10 ms
		{45, 55, 5, 55},  // 5 ms of the sixth
		{60, 70, 0, 70},  // seven
		{60, 70, 10, 70}, // both begin at once
	} {
		now := begin.Add(ms(tt.at))
		answer := q.take(now).Sub(begin)
		if wait, done := q.wait(now), q.done(now); answer != ms(tt.answer) || wait != ms(tt.wait) || done != ms(tt.done) {
			t.Errorf("at %d ms: answered at %v, wait %v, done %v; want %v, %v, %v ms", tt.at, answer, wait, done, tt.answer, tt.wait, tt.done)
		}
	}
}

// TestOccupancy: 0.8 of the time that workers are busy, 0.2 of the queue in units of the patience.
func TestOccupancy(t *testing.T) {
	begin := time.Unix(1000, 0)
	q := newQueue(2, ms(10))
	o := occupancy{patience: ms(100)}
	if got := o.read(begin, q); got != 0 {
		t.Errorf("in the beginning: %v", got)
	}
	for range 3 {
		q.take(begin)
	}
	// Until 20 ms: 10 + 10 and 10 ms of 40: 0.75 * 0.8.
	if got := o.read(begin.Add(ms(20)), q); math.Abs(got-0.6) > 1e-9 {
		t.Errorf("after three requests: %v, want 0.6", got)
	}
	for range 6 {
		q.take(begin.Add(ms(20)))
	}
	// Until 30 ms all are busy, and 20 ms are left for each: 0.8 + 0.2 * 0.2.
	if got := o.read(begin.Add(ms(30)), q); math.Abs(got-0.84) > 1e-9 {
		t.Errorf("with a queue: %v, want 0.84", got)
	}
	for range 100 {
		q.take(begin.Add(ms(30)))
	}
	if got := o.read(begin.Add(ms(40)), q); got != 1 {
		t.Errorf("with more of a queue than patience: %v, want 1", got)
	}
}

func TestVisits(t *testing.T) {
	const rate, requests = 200, 6
	all := visits(1, rate, 30*time.Second, requests, ms(150))
	if diff := cmp.Diff(all, visits(1, rate, 30*time.Second, requests, ms(150)), cmp.AllowUnexported(visit{})); diff != "" {
		t.Errorf("the same seed gives others:\n%s", diff)
	}
	if cmp.Equal(all, visits(2, rate, 30*time.Second, requests, ms(150)), cmp.AllowUnexported(visit{})) {
		t.Error("another seed gives the same")
	}
	// 6,000 sessions: the standard error of a count is 1.3 %, of the other means less.
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 0.04*want {
			t.Errorf("%s: %v, want about %v", what, got, want)
		}
	}
	near("sessions", float64(len(all)), 30*rate)
	sum, thinks := time.Duration(0), 0
	for i, v := range all {
		if i > 0 && v.at < all[i-1].at || v.at >= 30*time.Second {
			t.Fatalf("session %d comes at %v", i, v.at)
		}
		if len(v.thinks) < 2 {
			t.Fatalf("session %d has %d pauses, and 3 requests at least", i, len(v.thinks))
		}
		thinks += len(v.thinks)
		for _, d := range v.thinks {
			sum += d
		}
	}
	near("requests", float64(thinks)/float64(len(all))+1, requests)
	near("pause", float64(sum)/float64(thinks), float64(ms(150)))
	for _, v := range visits(1, rate, time.Second, 1, ms(150)) {
		if len(v.thinks) != 0 {
			t.Fatalf("%d pauses in a session of one request", len(v.thinks))
		}
	}
}

type timeoutError struct{ error }

func (timeoutError) Timeout() bool { return true }

func TestFate(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		ctx      context.Context
		answered int
		err      error
		want     fate
	}{
		{context.Background(), 3, nil, visitCompleted},
		{over, 3, nil, visitCompleted},
		{context.Background(), 0, errRefused, visitRefused},
		{context.Background(), 1, errRefused, visitLate},
		{context.Background(), 1, os.ErrDeadlineExceeded, visitLate},
		{context.Background(), 0, context.DeadlineExceeded, visitLate},
		{context.Background(), 0, timeoutError{errors.New("dial")}, visitLate},
		{context.Background(), 0, errors.New("reset"), visitFailed},
		{over, 1, errors.New("closed"), visitCut},
	} {
		if got := (&patient{}).fateOf(tt.ctx, tt.answered, tt.err); got != tt.want {
			t.Errorf("%d answered, %v: %v, want %v", tt.answered, tt.err, got, tt.want)
		}
	}
}

func TestTallyRun(t *testing.T) {
	ends := []end{
		{fate: visitCompleted, at: ms(1999), requests: 4}, // before the warm-up is over
		{fate: visitCompleted, at: ms(2000), requests: 4},
		{fate: visitCompleted, at: ms(4000), requests: 4},
		{fate: visitRefused, at: ms(3000)},
		{fate: visitLate, at: ms(3000), requests: 3},
		{fate: visitFailed, at: ms(3000), requests: 2},
		{fate: visitCut, at: ms(4000), requests: 3},
	}
	// 15 of 20 requests were not in vain; 3 of 5 sessions that ended were completed; 2 of them in 2 s.
	want := OverloadRun{Seed: 7, Rate: 1, Came: 7, Completed: 3, Refused: 1, Late: 1, Failed: 1, GoingOn: 1, Kept: 0.6, InVain: 0.25}
	got := tallyRun(7, ends, ms(2000), ms(4000), 20)
	if diff := cmp.Diff(want, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestCompare: differences 1, 2 and 3 have a mean of 2 and a standard deviation of 1; twice its third's root is 1.155.
func TestCompare(t *testing.T) {
	d, noise := compare([]float64{11, 12, 13}, []float64{10, 10, 10})
	if d != 2 || math.Abs(noise-2/math.Sqrt(3)) > 1e-9 {
		t.Errorf("%v, %v", d, noise)
	}
	for _, tt := range [][2][]float64{{{9}, {10}}, {{9, 10}, {10, 11}}} { // no error is known, or none
		if d, noise = compare(tt[0], tt[1]); d != -1 || math.Abs(noise-0.06*mean(tt[1])) > 1e-9 {
			t.Errorf("%v: %v, %v", tt, d, noise)
		}
	}
}

func TestJudge(t *testing.T) {
	runs := func(rates ...float64) (list []OverloadRun) {
		for _, r := range rates {
			list = append(list, OverloadRun{Rate: r, Came: 1000, Completed: 500})
		}
		return list
	}
	broken := runs(100, 100)
	broken[1].Failed = 11
	for _, tt := range []struct {
		name string
		runs map[OverloadPolicy][]OverloadRun
		ok   bool
	}{
		{"ahead", map[OverloadPolicy][]OverloadRun{OverloadNone: runs(20, 20), OverloadSA2C: runs(90, 92)}, true},
		{"behind within the noise", map[OverloadPolicy][]OverloadRun{OverloadStatic: runs(95, 91), OverloadSA2C: runs(90, 92)}, true},
		{"behind by what a repetition may", map[OverloadPolicy][]OverloadRun{OverloadStatic: runs(95, 97), OverloadSA2C: runs(90, 92)}, true},
		{"behind", map[OverloadPolicy][]OverloadRun{OverloadStatic: runs(95, 97), OverloadSA2C: runs(88, 90)}, false},
		{"broken connections", map[OverloadPolicy][]OverloadRun{OverloadSA2C: broken}, false},
		{"nothing completed", map[OverloadPolicy][]OverloadRun{OverloadBare: {{Came: 10}}}, false},
	} {
		r := OverloadResult{CompletedSessionsPerSecond: map[OverloadPolicy]float64{}, Noise: map[OverloadPolicy]float64{}, Runs: tt.runs}
		if r.judge(); r.OK != tt.ok {
			t.Errorf("%s: %v %v", tt.name, r.OK, r.Problems)
		}
	}
}

func TestOverloadConfig(t *testing.T) {
	for name, c := range map[string]OverloadConfig{
		"warm-up": {WarmUp: time.Minute}, "policy": {Policies: []OverloadPolicy{"best"}}, "offered": {Offered: -1}, "workers": {Workers: -1},
		"patience": {Patience: -1},
	} {
		if err := c.withDefaults().validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	c := OverloadConfig{}.withDefaults()
	if err := c.validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
	// Three servers of two workers, 10 ms and six requests each: 3 * 2 / 0.06. A worker can take 16 turns of 10 in 160 ms:
	// twice 32.
	if got := c.Capacity(3); math.Abs(got-100) > 1e-9 {
		t.Errorf("capacity: %v, want 100", got)
	}
	if got := c.bestBound(); got != 64 {
		t.Errorf("bound: %d, want 64", got)
	}
}
