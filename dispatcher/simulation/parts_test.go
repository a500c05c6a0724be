// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"math"
	"slices"
	"testing"
)

// TestAgenda holds that events come out by time, whatever the order in which they went in.
func TestAgenda(t *testing.T) {
	random := streamOf(1, 1)
	var a agenda
	var want []float64
	for round := range 2000 {
		if round%3 < 2 || len(want) == 0 {
			at := math.Floor(random.uniform() * 100) // some at the same time
			a.add(event{at: at, who: int32(round)})
			want = append(want, at)
			continue
		}
		slices.Sort(want)
		if got := a.next().at; got != want[0] {
			t.Fatalf("round %d: the next is at %v, want %v", round, got, want[0])
		}
		want = want[1:]
	}
	slices.Sort(want)
	for _, at := range want {
		if got := a.next().at; got != at {
			t.Fatalf("the next is at %v, want %v", got, at)
		}
	}
}

// TestStream holds that means are what they are said to be, within five standard deviations, and that neighbours are not alike.
func TestStream(t *testing.T) {
	const n = 200_000
	random := streamOf(3, 4)
	uniform, exponential, geometric := 0.0, 0.0, 0.0
	for range n {
		uniform += random.uniform()
		exponential += random.exponential(2)
		geometric += float64(random.geometric(8))
	}
	for _, tt := range []struct {
		name                string
		got, want, variance float64
	}{
		{"uniform", uniform / n, 0.5, 1.0 / 12},
		{"exponential", exponential / n, 2, 4},
		{"geometric", geometric / n, 8, 56}, // (1-p)/p^2 with p = 1/8
	} {
		if math.Abs(tt.got-tt.want) > 5*math.Sqrt(tt.variance/n) {
			t.Errorf("%s: mean %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	if random.geometric(1) != 1 || random.geometric(0) != 1 {
		t.Error("a session has at least one request")
	}
	first := 0.0
	for number := range uint64(n) {
		s := streamOf(3, number)
		first += s.uniform()
	}
	if math.Abs(first/n-0.5) > 5*math.Sqrt(1.0/12/n) {
		t.Errorf("the first numbers of streams have a mean of %v", first/n)
	}
}

// TestServer holds the account of one server, by hand: a job of 1 s at 0 s, one of 2 s at 0.5 s; patience is 4 s.
func TestServer(t *testing.T) {
	s := server{speed: 1}
	load := func(now, interval float64) float64 { return new(Config).load(s.parts(now, interval, 4)) }
	if !s.push(0, job{session: 1, work: 1}) || s.push(0.5, job{session: 2, work: 2}) {
		t.Error("the first job is served at once, and the second is not")
	}
	// Busy for all of the first second. No job has ended: 3 s of work wait, three quarters of the patience. 0.8 + 0.2*0.75.
	if got := load(1, 1); math.Abs(got-0.95) > 1e-9 {
		t.Errorf("load %v, want 0.95", got)
	}
	if j := s.pop(1); j.session != 1 || s.queued() != 1 {
		t.Errorf("%+v was first, %d wait", j, s.queued())
	}
	if j := s.pop(3); j.session != 2 || s.queued() != 0 {
		t.Errorf("%+v was second, %d wait", j, s.queued())
	}
	// From 1 s to 5 s it was busy for 2 s: 0.8*0.5.
	if got := load(5, 4); math.Abs(got-0.4) > 1e-9 {
		t.Errorf("load %v, want 0.4", got)
	}
	if got := load(6, 1); got != 0 {
		t.Errorf("load %v of an idle server", got)
	}
	// At half its speed 3 s of work take 6 s, more than all patience.
	s.speed = 0.5
	s.push(6, job{work: 3})
	if got := load(7, 1); math.Abs(got-1) > 1e-9 {
		t.Errorf("load %v, want 1", got)
	}
	// A long queue keeps its order, and its memory in bounds.
	s = server{speed: 1}
	next, last := int32(0), int32(0)
	for range 100_000 {
		s.push(0, job{session: last, work: 1})
		last++
		if last%2 == 0 || s.queued() > 2000 {
			if got := s.pop(0).session; got != next {
				t.Fatalf("session %d came out, want %d", got, next)
			}
			next++
		}
	}
	if len(s.jobs) > 3*s.queued()+4096 {
		t.Errorf("%d places for %d jobs", len(s.jobs), s.queued())
	}
}

func TestLargestPart(t *testing.T) {
	for _, tt := range []struct{ part, busy, backlog, want float64 }{
		{0, 1, 0.5, 0.9}, {0.8, 1, 0.5, 0.8}, {0.8, 1, 0.9, 0.9}, {1, 0.7, 0, 0.7}, {1, 1, 0.3, 1},
	} {
		c := Config{LargestPart: tt.part}
		if got := c.load(tt.busy, tt.backlog); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("%+v: load %v", tt, got)
		}
	}
}
