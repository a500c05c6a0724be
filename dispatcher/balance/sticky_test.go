// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func stickyOf(t testing.TB, p Policy, c StickyConfig) *Sticky {
	t.Helper()
	s, err := NewSticky(p, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewStickyRefuses(t *testing.T) {
	policy := policyOf(t, Config{})
	for _, tt := range []struct {
		policy Policy
		config StickyConfig
		want   string
	}{
		{policy, StickyConfig{Time: -time.Second}, "sticky time: -1s"},
		{policy, StickyConfig{Keys: 1}, "sticky keys: 1"},
		{nil, StickyConfig{}, "no policy"},
	} {
		if s, err := NewSticky(tt.policy, tt.config); s != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.config, err, tt.want)
		}
	}
}

// TestStickyKeeps holds against a simple model what is promised: a key that was used within the time goes where it was if that backend
// takes connections, one that was not used for twice the time is forgotten, and the bound on keys holds.
func TestStickyKeeps(t *testing.T) {
	const keys, bound, hold = 64, 256, 10 * time.Second
	random := rand.New(rand.NewPCG(1, 22))
	backends := backendsOf(8, 1, 2)
	choice := &scripted{}
	s := stickyOf(t, choice, StickyConfig{Time: hold, Keys: bound})
	type use struct {
		name string
		at   time.Time
	}
	last := make(map[uint64]use)
	now := epoch()
	for range 50_000 {
		now = now.Add(time.Duration(random.Int64N(int64(500 * time.Millisecond))))
		backends[random.IntN(len(backends))].Down = random.IntN(3) == 0
		key := random.Uint64N(keys)
		asked := choice.asked
		choice.next = random.IntN(len(backends))
		backends[choice.next].Down = false
		i := s.Choose(now, key, backends)
		u, known := last[key]
		up := known && backends[place(u.name, backends)].takes()
		age := now.Sub(u.at)
		switch stuck := choice.asked == asked; {
		case stuck && backends[i].Name != u.name:
			t.Fatalf("key %d went to %s, it was at %s", key, backends[i].Name, u.name)
		case !stuck && i != choice.next:
			t.Fatalf("key %d went to %d, the policy chose %d", key, i, choice.next)
		case !stuck && up && age < hold:
			t.Fatalf("key %d was forgotten after %v", key, age)
		case stuck && age >= 2*hold:
			t.Fatalf("key %d was known after %v", key, age)
		}
		last[key] = use{backends[i].Name, now}
		if s.Len() > bound {
			t.Fatalf("%d keys, the bound is %d", s.Len(), bound)
		}
	}
}

// scripted chooses what it is told.
type scripted struct{ next, asked int }

func (p *scripted) Choose(time.Time, uint64, []Backend) int {
	p.asked++
	return p.next
}

// TestStickyIsBounded holds that a flood of keys costs bounded memory, and that the latest half of the bound survives it.
func TestStickyIsBounded(t *testing.T) {
	const bound = 1000
	backends := backendsOf(3, 1)
	choice := &scripted{}
	s := stickyOf(t, choice, StickyConfig{Keys: bound})
	for key := range uint64(100 * bound) {
		choice.next = int(key % 3)
		s.Choose(epoch(), key, backends)
		if s.Len() > bound {
			t.Fatalf("%d keys, the bound is %d", s.Len(), bound)
		}
	}
	for key := uint64(100*bound - bound/2); key < 100*bound; key++ {
		if i := s.Choose(epoch(), key, backends); i != int(key%3) {
			t.Fatalf("one of the latest keys, %d, went to %d", key, i)
		}
	}
}

// TestStickyAfter holds that keys stay where they are when the list of backends is another one.
func TestStickyAfter(t *testing.T) {
	backends := backendsOf(4, 1)
	s := stickyOf(t, policyOf(t, Config{}), StickyConfig{})
	before := make(map[uint64]string)
	for key := range uint64(40) {
		before[key] = backends[s.Choose(epoch(), key, backends)].Name
	}
	fewer := []Backend{backends[3], backends[0], backends[2]}
	next := stickyOf(t, policyOf(t, Config{Kind: LeastConnections}), StickyConfig{Time: time.Hour})
	next.After(s)
	s = next
	for key := range uint64(40) {
		got := fewer[s.Choose(epoch(), key, fewer)].Name
		if before[key] != backends[1].Name && got != before[key] {
			t.Errorf("key %d was at %s and is at %s now", key, before[key], got)
		}
	}
	s.Forget(0)
	if s.Len() != 39 {
		t.Errorf("%d keys after one of 40 was forgotten", s.Len())
	}
}

// TestStickyVisits holds how a cookie finds its backend, step by step: what is named, what is known, what its client got.
func TestStickyVisits(t *testing.T) {
	const alice, bob, laura, mallory = 11, 12, 21, 22 // two keys, two clients
	backends := backendsOf(3, 1)
	choice := &scripted{}
	s := stickyOf(t, choice, StickyConfig{})
	for i, step := range []struct {
		what  string
		visit Visit
		next  int    // what the policy would choose
		down  string // a backend
		want  int
		asked bool
	}{
		{"no cookie yet", Visit{Keyless: true, Client: laura}, 1, "", 1, true},
		{"the same client without cookie is balanced", Visit{Keyless: true, Client: laura}, 2, "", 2, true},
		{"the cookie that the client was given there", Visit{Key: alice, Client: laura}, 0, "", 2, false},
		{"another client of that address has been elsewhere meanwhile", Visit{Keyless: true, Client: laura}, 0, "", 0, true},
		{"the cookie stays", Visit{Key: alice, Client: laura}, 1, "", 2, false},
		{"the cookie comes from another address", Visit{Key: alice, Client: mallory}, 1, "", 2, false},
		{"a cookie from nowhere", Visit{Key: bob, Client: mallory}, 1, "", 1, true},
		{"its backend is down", Visit{Key: bob, Client: mallory}, 0, "backend-1", 0, true},
		{"and comes back: the cookie stays with the other", Visit{Key: bob, Client: mallory}, 1, "", 0, false},
		{"the cookie names a backend", Visit{Key: bob, Client: mallory, Backend: "backend-2"}, 1, "", 2, false},
		{"which counts from then on", Visit{Key: bob}, 1, "", 2, false},
		{"a named backend that is down", Visit{Key: alice, Backend: "backend-0"}, 1, "backend-0", 2, false},
		{"a named backend that is none", Visit{Key: alice, Backend: "backend-7"}, 1, "", 2, false},
	} {
		for j := range backends {
			backends[j].Down = backends[j].Name == step.down
		}
		before := choice.asked
		choice.next = step.next
		if got := s.Place(epoch().Add(time.Duration(i)*time.Second), step.visit, backends); got != step.want || (choice.asked > before) != step.asked {
			t.Errorf("%s: place %d, policy asked %v; want %d, %v", step.what, got, choice.asked > before, step.want, step.asked)
		}
	}
}

func BenchmarkSticky(b *testing.B) {
	for _, keys := range []uint64{1, 50_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			b.ReportAllocs()
			backends := backendsOf(64, 1)
			s := stickyOf(b, policyOf(b, Config{Kind: Shell}), StickyConfig{})
			for key := range keys {
				s.Choose(epoch(), mix(key), backends)
			}
			var n uint64
			for b.Loop() {
				n++
				s.Choose(epoch(), mix(n%keys), backends)
			}
		})
	}
}
