// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"hash/maphash"
	"testing"
	"time"
)

// smallTimes keeps the number of timers down. The order of the times is the one of the defaults, and Grace has room for more
// questions than a search has faults to spoil them.
func smallTimes() Config {
	return Config{Limit: 4 * time.Second, Grace: 4 * time.Second, Retry: time.Second, HeldWait: time.Second}
}

// search walks every order of every step from a world, depth first, and remembers where it has been.
type search struct {
	seed    maphash.Seed
	visited map[uint64]struct{}
	states  int
	ends    int
	limit   int
	path    []step
	// found is the way to a broken rule, and broken its name.
	found  []step
	broken string
	key    []byte
}

func newSearch(limit int) *search {
	return &search{seed: maphash.MakeSeed(), visited: make(map[uint64]struct{}), limit: limit}
}

// run reports whether the walk came to its end.
func (s *search) run(w *world) bool {
	s.key = w.key(s.key[:0])
	h := maphash.Bytes(s.seed, s.key)
	if _, ok := s.visited[h]; ok {
		return true
	}
	s.visited[h] = struct{}{}
	s.states++
	if s.states > s.limit {
		return false
	}
	free := w.free(nil)
	next := free
	if w.faults > 0 {
		for _, f := range free {
			next = crashes(f, next)
		}
		next = w.spoiled(next)
	}
	if _, ok := w.next(); ok && (len(free) == 0 || w.delays > 0) {
		next = append(next, step{op: opTime, crash: never, long: len(free) > 0})
	}
	if len(next) == 0 || len(free) == 0 && next[len(next)-1].op != opTime {
		s.ends++
		end := *w
		end.atRest()
		if s.note(&end) {
			return false
		}
	}
	for _, st := range next {
		n := *w
		switch {
		case st.op == opTime && len(free) > 0:
			n.delays--
		case st.op >= opKillAgent || st.crash >= 0:
			n.faults--
		}
		s.path = append(s.path, st)
		if !n.take(st) {
			s.path = s.path[:len(s.path)-1]
			continue
		}
		if s.note(&n) || !s.run(&n) {
			return false
		}
		s.path = s.path[:len(s.path)-1]
	}
	return true
}

func (s *search) note(w *world) bool {
	if w.broken == "" {
		return false
	}
	s.found, s.broken = append([]step(nil), s.path...), w.broken
	return true
}

// replay tells what happens on the way that a search found.
func replay(w world, path []step) string {
	w.trace = &trace{}
	for _, s := range path {
		w.take(s)
	}
	if w.broken == "" {
		w.atRest()
	}
	w.note("BROKEN: %s", w.broken)
	return w.trace.String()
}

// shortest searches with more and more faults, so that what it finds is short.
func shortest(w *world, limit int) *search {
	var s *search
	faults, delays := w.faults, w.delays
	for f := 0; f <= faults; f++ {
		for d := 0; d <= delays; d++ {
			s = newSearch(limit)
			n := *w
			n.faults, n.delays = f, d
			if s.run(&n); s.broken != "" {
				return s
			}
		}
	}
	return s
}

// TestEveryOrder takes every course that a move can take, with up to so many faults of any kind at any point, and up to so
// many times that everything is slower than the next timer.
func TestEveryOrder(t *testing.T) {
	tests := []struct {
		name           string
		ahead, large   bool
		migrations     int
		faults, delays int
		harsh          bool
		thorough       bool // minutes rather than seconds
	}{
		{name: "straight", migrations: 1, delays: 2},
		{name: "one fault", migrations: 1, faults: 1, delays: 1},
		{name: "one fault, with State ahead", migrations: 1, faults: 1, ahead: true, large: true},
		{name: "one fault, harsh", migrations: 1, faults: 1, delays: 1, harsh: true},
		{name: "there and back", migrations: 2, faults: 1, thorough: true},
		{name: "one fault and slow", migrations: 1, faults: 1, delays: 2, harsh: true, thorough: true},
		{name: "two faults", migrations: 1, faults: 2, delays: 1, thorough: true},
		{name: "two faults, harsh", migrations: 1, faults: 2, delays: 1, harsh: true, thorough: true},
		{name: "two faults, with State ahead", migrations: 1, faults: 2, ahead: true, large: true, thorough: true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if tc.thorough && !thorough() {
				t.Skip("takes minutes: set REHOME_MODEL_TIME")
			}
			world := func() *world {
				w := newWorld(smallTimes())
				w.migrations, w.ahead, w.large, w.harsh, w.faults, w.delays = tc.migrations, tc.ahead, tc.large, tc.harsh, tc.faults, tc.delays
				return w
			}
			began := time.Now()
			s := newSearch(50_000_000)
			done := s.run(world())
			if s.broken != "" {
				t.Fatalf("%s\n%s", s.broken, replay(*world(), s.found))
			}
			if !done {
				t.Fatalf("gave up after %d states", s.states)
			}
			t.Logf("%d states, %d ends, %v", s.states, s.ends, time.Since(began).Round(time.Millisecond))
		})
	}
}
