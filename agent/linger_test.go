// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestLingering(t *testing.T) {
	start := time.Unix(1e9, 0)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	l := lingering{limit: 3, time: time.Minute}
	expect := func(now time.Duration, flow int, wantEarly bool) {
		t.Helper()
		f, early, ok := l.take(at(now))
		switch {
		case flow == 0 && ok:
			t.Errorf("at %v: %v is due", now, f)
		case flow != 0 && (!ok || f != testFlow(flow) || early != wantEarly):
			t.Errorf("at %v: %v, early %v, %v; want %v, %v", now, f, early, ok, testFlow(flow), wantEarly)
		}
	}
	if expect(0, 0, false); !l.next().IsZero() {
		t.Error("something is awaited while nothing lingers")
	}
	for i := range 3 {
		l.add(at(time.Duration(i)*time.Second), testFlow(i+1))
	}
	if got := l.next(); got != at(time.Minute) {
		t.Errorf("next at %v", got)
	}
	expect(59*time.Second, 0, false)
	expect(60*time.Second, 1, false)
	expect(60*time.Second, 0, false)
	// One too many: the oldest goes.
	l.add(at(60*time.Second), testFlow(4))
	l.add(at(60*time.Second), testFlow(5))
	if got := l.next(); got.After(at(60 * time.Second)) {
		t.Errorf("next at %v, although there are too many", got)
	}
	expect(60*time.Second, 2, true)
	expect(60*time.Second, 0, false)
	expect(62*time.Second, 3, false)
	expect(2*time.Minute, 4, false)
	expect(2*time.Minute, 5, false)
	expect(3*time.Minute, 0, false)
}

// TestLingeringIsBounded lets many flows come and go: their order is kept, and their memory is given back.
func TestLingeringIsBounded(t *testing.T) {
	const limit = 100
	l := lingering{limit: limit, time: time.Second}
	now := time.Unix(1e9, 0)
	in, out := 0, 0
	for range 100000 {
		now = now.Add(time.Duration(rand.IntN(20)) * time.Millisecond)
		in++
		l.add(now, testFlow(in))
		for {
			f, _, ok := l.take(now)
			if !ok {
				break
			}
			if out++; f != testFlow(out) {
				t.Fatalf("%v left, want %v", f, testFlow(out))
			}
		}
		if l.len() > limit || l.len() != in-out {
			t.Fatalf("%d linger after %d and %d", l.len(), in, out)
		}
	}
	if cap(l.flows) > 8*limit {
		t.Errorf("room for %d flows is kept", cap(l.flows))
	}
}
