// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"math"
	"os"
	"strings"
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
	// Useful are 15 in 4 s.
	want := OverloadRun{Seed: 7, Rate: 1, Useful: 3.75, Came: 7, Completed: 3, Refused: 1, Late: 1, Failed: 1, GoingOn: 1, Kept: 0.6, InVain: 0.25}
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
		if d, noise = compare(tt[0], tt[1]); d != -1 || math.Abs(noise-repeatability*mean(tt[1])) > 1e-9 {
			t.Errorf("%v: %v, %v", tt, d, noise)
		}
	}
}

func TestJudge(t *testing.T) {
	runs := func(useful ...float64) (list []OverloadRun) {
		for _, u := range useful {
			list = append(list, OverloadRun{Useful: u, Rate: u / 6, Came: 1000, Completed: 500, Refused: 400, Dropped: 400, Kept: 1})
		}
		return list
	}
	changed := func(change func(*OverloadRun)) []OverloadRun {
		list := runs(550, 550)
		change(&list[1])
		return list
	}
	counted := func(r *OverloadRun) {
		r.Datagrams = &OverloadDatagrams{Sent: 4000, Arrived: 3600, Sessions: 600}
	}
	for _, tt := range []struct {
		name string
		runs map[OverloadPolicy][]OverloadRun
		want string // in the one problem; none when empty
	}{
		{"ahead", map[OverloadPolicy][]OverloadRun{OverloadNone: runs(200, 200), OverloadSA2C: runs(540, 550)}, ""},
		{"behind within the noise", map[OverloadPolicy][]OverloadRun{OverloadStatic: runs(560, 540), OverloadSA2C: runs(540, 550)}, ""},
		{"behind by what a disturbed run may be", map[OverloadPolicy][]OverloadRun{OverloadLeastConn: runs(580, 580, 580), OverloadSA2C: runs(580, 580, 520)}, ""},
		{"behind", map[OverloadPolicy][]OverloadRun{OverloadStatic: runs(600, 600), OverloadSA2C: runs(560, 560)}, "40 requests per second less than static"},
		{"no better than none", map[OverloadPolicy][]OverloadRun{OverloadNone: runs(540, 550), OverloadSA2C: runs(540, 560)}, "5 requests per second more"},
		{"no better than request", map[OverloadPolicy][]OverloadRun{OverloadRequest: runs(600, 600), OverloadSA2C: runs(540, 540)}, "-60 requests per second more"},
		{"datagrams are another service", map[OverloadPolicy][]OverloadRun{OverloadDatagram: runs(600, 600), OverloadSA2C: runs(300, 300)}, ""},
		{"datagrams, no better than none", map[OverloadPolicy][]OverloadRun{OverloadDatagram: runs(600, 600), OverloadDatagramNone: runs(590, 590)}, "udp serves 10"},
		{"broken connections", map[OverloadPolicy][]OverloadRun{OverloadSA2C: changed(func(r *OverloadRun) { r.Failed = 11 })}, "11 connections"},
		{"nothing completed", map[OverloadPolicy][]OverloadRun{OverloadBare: {{Came: 10}}}, "no session"},
		{"established sessions suffer", map[OverloadPolicy][]OverloadRun{OverloadSA2C: changed(func(r *OverloadRun) { r.Degraded = 1 })}, "1 packets"},
		{"not the kernel", map[OverloadPolicy][]OverloadRun{OverloadSilent: changed(func(r *OverloadRun) { r.Dropped = 0 })}, "the kernel has refused none"},
		{"not kept", map[OverloadPolicy][]OverloadRun{OverloadDatagram: changed(func(r *OverloadRun) { r.Kept = 0.89 })}, "89 % were completed"},
		{"datagrams counted", map[OverloadPolicy][]OverloadRun{OverloadDatagram: changed(counted)}, ""},
		{"datagrams missing", map[OverloadPolicy][]OverloadRun{OverloadDatagram: changed(func(r *OverloadRun) {
			counted(r)
			r.Datagrams.Missing = 41
		})}, "do not tell of 41"},
		{"no server", map[OverloadPolicy][]OverloadRun{OverloadDatagram: changed(func(r *OverloadRun) {
			counted(r)
			r.Datagrams.Unplaced = 1
		})}, "found no server for 1"},
		{"others are absent", map[OverloadPolicy][]OverloadRun{OverloadDatagram: changed(func(r *OverloadRun) {
			counted(r)
			r.Datagrams.Sessions = 580
		})}, "420 sessions have come to no server, and the kernel has refused 400"},
	} {
		r := OverloadResult{Offered: 2, CompletedSessionsPerSecond: map[OverloadPolicy]float64{}, Noise: map[OverloadPolicy]float64{}, Runs: tt.runs}
		r.judge()
		if r.OK != (tt.want == "") || !r.OK && (len(r.Problems) != 1 || !strings.Contains(r.Problems[0], tt.want)) {
			t.Errorf("%s: %v %q", tt.name, r.OK, r.Problems)
		}
	}
	r := OverloadResult{Offered: 2, CompletedSessionsPerSecond: map[OverloadPolicy]float64{}, Surges: []OverloadSurge{{Datagrams: &OverloadDatagrams{}}}}
	if r.judge(); r.OK {
		t.Error("a surge in which nothing happened")
	}
}

func TestOverloadConfig(t *testing.T) {
	for name, c := range map[string]OverloadConfig{
		"warm-up": {WarmUp: time.Minute}, "policy": {Policies: []OverloadPolicy{"best"}}, "offered": {Offered: -1}, "workers": {Workers: -1},
		"patience": {Patience: -1}, "surge": {Surge: 3 * time.Second},
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
