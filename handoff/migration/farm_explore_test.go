// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"hash/maphash"
	"testing"
	"time"
)

// farmSearch walks every order of every step from a farm, as search does from a world.
type farmSearch struct {
	seed    maphash.Seed
	visited map[uint64]struct{}
	limit   int
	path    []farmStep
	found   []farmStep
	broken  string
	key     []byte
	// ends counts how the connection ended.
	ends struct{ given, served, moved, answered, told, robbed, foreign int }
}

func newFarmSearch(limit int) *farmSearch {
	return &farmSearch{seed: maphash.MakeSeed(), visited: make(map[uint64]struct{}), limit: limit}
}

// run reports whether the walk came to its end.
func (s *farmSearch) run(f *farm) bool {
	s.key = f.key(s.key[:0])
	h := maphash.Bytes(s.seed, s.key)
	if _, ok := s.visited[h]; ok {
		return true
	}
	s.visited[h] = struct{}{}
	if len(s.visited) > s.limit {
		return false
	}
	free := f.free(nil)
	next := free
	if f.faults > 0 {
		for _, st := range free {
			next = farmCrashes(st, next)
		}
		next = f.spoiled(next)
	}
	next = f.ending(next)
	_, timer := f.next()
	if timer && (len(free) == 0 || f.delays > 0) {
		next = append(next, farmStep{op: farmTime, crash: never, long: len(free) > 0})
	}
	if len(free) == 0 && !timer {
		end := *f
		end.atRest()
		s.count(&end)
		if s.note(&end) {
			return false
		}
	}
	for _, st := range next {
		n := *f
		switch {
		case st.op == farmTime && st.long:
			n.delays--
		case st.fault():
			n.faults--
		}
		s.path = append(s.path, st)
		if n.take(st) && (s.note(&n) || !s.run(&n)) {
			return false
		}
		s.path = s.path[:len(s.path)-1]
	}
	return true
}

func (s *farmSearch) count(f *farm) {
	switch {
	case f.foreign:
		s.ends.foreign++
	case f.robbed:
		s.ends.robbed++
	case f.told != "":
		s.ends.told++
	case f.moved:
		s.ends.moved++
	case f.served:
		s.ends.served++
	case f.desk.sock == sockLive:
		s.ends.answered++
	default:
		s.ends.given++
	}
}

func (s *farmSearch) note(f *farm) bool {
	if f.broken == "" {
		return false
	}
	s.found, s.broken = append([]farmStep(nil), s.path...), f.broken
	return true
}

// replayFarm tells what happens on the way that a search found.
func replayFarm(f farm, path []farmStep) string {
	f.trace = &trace{}
	for _, st := range path {
		f.take(st)
	}
	if f.broken == "" {
		f.atRest()
	}
	f.note("BROKEN: %s", f.broken)
	return f.trace.String()
}

// shortestFarm searches with more and more faults, so that what it finds is short.
func shortestFarm(f *farm, limit int) *farmSearch {
	var s *farmSearch
	for faults := 0; faults <= f.faults; faults++ {
		for delays := 0; delays <= f.delays; delays++ {
			s = newFarmSearch(limit)
			n := *f
			n.faults, n.delays = faults, delays
			if s.run(&n); s.broken != "" {
				return s
			}
		}
	}
	return s
}

// TestEveryHandoff takes every course that handing off one connection can take, with up to so many faults of any kind at any
// point, and up to so many times that everything is slower than the next timer.
func TestEveryHandoff(t *testing.T) {
	tests := []struct {
		name           string
		faults, delays int
		ends           int
		atOnce         [2]bool
		limit          time.Duration // fastTimes' if 0
		thorough       bool
	}{
		{name: "straight", delays: 2, ends: 1},
		{name: "one fault", faults: 1, ends: 1},
		{name: "one fault and slow", faults: 1, delays: 1, ends: 1},
		{name: "straight, at once", delays: 2, ends: 1, atOnce: [2]bool{true, true}},
		{name: "one fault, at once", faults: 1, ends: 1, atOnce: [2]bool{true, true}},
		{name: "one fault and slow, at once", faults: 1, delays: 1, ends: 1, atOnce: [2]bool{true, true}},
		{name: "two faults", faults: 2, ends: 1},
		{name: "two faults, at once", faults: 2, ends: 1, atOnce: [2]bool{true, true}},
		{name: "two faults, the second at once", faults: 2, ends: 1, atOnce: [2]bool{false, true}},
		{name: "two faults, limit longer than grace", faults: 2, limit: 9 * askAgain},
		{name: "two faults and slow", faults: 2, delays: 1, ends: 1, thorough: true},
		{name: "two faults and slow, at once", faults: 2, delays: 1, ends: 1, atOnce: [2]bool{true, true}, thorough: true},
		{name: "three faults", faults: 3, ends: 1, thorough: true},
		{name: "three faults, at once", faults: 3, ends: 1, atOnce: [2]bool{true, true}, thorough: true},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			if tc.thorough && !thorough() {
				t.Skip("takes minutes: set REHOME_MODEL_TIME")
			}
			began := time.Now()
			s := newFarmSearch(60_000_000)
			start := newFastFarm()
			if tc.limit > 0 {
				start.limit = tc.limit
			}
			start.faults, start.delays, start.ends, start.atOnce = tc.faults, tc.delays, tc.ends, tc.atOnce
			done := s.run(start)
			if s.broken != "" {
				t.Fatalf("%s\n%s", s.broken, replayFarm(*start, s.found))
			}
			if !done {
				t.Fatalf("gave up after %d states", len(s.visited))
			}
			t.Logf("%d states, %v, ends: %+v", len(s.visited), time.Since(began).Round(time.Millisecond), s.ends)
			if s.ends.given == 0 {
				t.Error("no way on which a server has the connection in the end")
			}
		})
	}
}

// TestBrokenHandoffs holds the checker itself to account: it must find what is wrong with each weaker dispatcher or agent.
func TestBrokenHandoffs(t *testing.T) {
	once := [2]bool{true, true}
	tests := []struct {
		name                 string
		rules                farmRules
		atOnce               [2]bool
		faults, delays, ends int
		want                 string
	}{
		{
			name:  "a taker that delivers before the answer",
			rules: farmRules{deliverBeforeAnswer: true},
			want:  "server a is live while the flow table has entry/1",
		},
		{
			name:  "a dispatcher that grants what it has given up",
			rules: farmRules{grantAnyone: true}, delays: 1,
			want: "0 have the connection, and the client was not told",
		},
		{
			name:  "a dispatcher that goes on when it has lost a server that was granted the flow",
			rules: farmRules{backOnPeerLost: true}, faults: 1,
			want: "taken back from server a, which has had it",
		},
		{
			name:  "an agent that answers for a taker that has not finished",
			rules: farmRules{hastyAbsent: true}, delays: 1,
			want: "taken back from server a, which has had it",
		},
		{
			name:  "an agent that does not remember what is over",
			rules: farmRules{forgetful: true}, faults: 2,
			want: "taken back from server a, which may have had it",
		},
		{
			name:  "a dispatcher that lets packets go before it knows who has the connection",
			rules: farmRules{releaseEarly: true}, faults: 1, ends: 1,
			want: "taken back from server a, which has had it",
		},
		{
			name:  "a dispatcher that goes on without having taken the flow back",
			rules: farmRules{takeBackBlindly: true}, faults: 2, atOnce: once,
			want: "the connection has moved on while the flow table has b/4",
		},
		{
			name:  "a dispatcher that forgets somebody else's flow",
			rules: farmRules{forgetBlindly: true}, faults: 2,
			want: "the client's new flow became unknown",
		},
		{
			name:  "a dispatcher that loses connections in silence",
			rules: farmRules{noReset: true}, faults: 2, ends: 1, atOnce: once,
			want: "0 have the connection, and the client was not told",
		},
		{
			name:  "an agent that takes what it has said it has not",
			rules: farmRules{unfenced: true}, faults: 1, delays: 1, atOnce: once,
			want: "server a is live while the flow table has b/4",
		},
		{
			name:  "a dispatcher that does not keep what it could not send",
			rules: farmRules{lostUnsent: true}, faults: 1, atOnce: once,
			want: "an attempt never ends",
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			start := newFastFarm()
			start.rules, start.faults, start.delays, start.ends, start.atOnce = tc.rules, tc.faults, tc.delays, tc.ends, tc.atOnce
			s := shortestFarm(start, 2_000_000)
			if s.broken != tc.want {
				t.Fatalf("found %q after %d states, want %q", s.broken, len(s.visited), tc.want)
			}
			t.Logf("\n%s", replayFarm(*start, s.found))
		})
	}
}
