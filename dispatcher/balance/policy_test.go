// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func policyOf(t testing.TB, c Config) Policy {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// backendsOf makes n backends whose weights go through the given ones again and again.
func backendsOf(n int, weights ...int) []Backend {
	backends := make([]Backend, n)
	for i := range backends {
		backends[i] = Backend{Name: fmt.Sprintf("backend-%d", i), Weight: weights[i%len(weights)]}
	}
	return backends
}

// kinds are all policies.
func kinds() []Kind { return []Kind{RoundRobin, LeastConnections, ConsistentHash, PowerOfTwo, Shell} }

func totalWeight(backends []Backend) (sum int) {
	for _, b := range backends {
		sum += b.Weight
	}
	return sum
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Kind: "random"}, "want round-robin, least-connections, consistent-hash, power-of-two or shell"},
		{Config{SlowStart: -1}, "slow start: -1ns"},
		{Config{Kind: Shell, SessionLoad: -0.1}, "session load: -0.1"},
		{Config{Kind: Shell, SessionLoad: math.NaN()}, "session load: NaN"},
	} {
		if p, err := New(tt.config); p != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, error %v, want one with %q", tt.config, p, err, tt.want)
		}
	}
}

// TestNobody holds that every policy says so when none can take a connection.
func TestNobody(t *testing.T) {
	none := []Backend{
		{Name: "drained", Weight: 1, Drained: true},
		{Name: "down", Weight: 1, Down: true},
		{Name: "tried", Weight: 1, Tried: true},
		{Name: "weight 0"},
		{Name: "negative", Weight: -1},
	}
	for _, kind := range kinds() {
		p := policyOf(t, Config{Kind: kind})
		if i := p.Choose(epoch(), 1, nil); i != -1 {
			t.Errorf("%s: %d of no backend", kind, i)
		}
		if i := p.Choose(epoch(), 1, none); i != -1 {
			t.Errorf("%s: chose %q", kind, none[i].Name)
		}
		if i := p.Choose(epoch(), 1, append(none, Backend{Name: "x", Weight: 1})); i != len(none) {
			t.Errorf("%s: %d, want the only one that can", kind, i)
		}
	}
}

// TestTried holds that a connection that nobody takes is offered to each backend once.
func TestTried(t *testing.T) {
	for _, kind := range kinds() {
		p := policyOf(t, Config{Kind: kind})
		backends := backendsOf(20, 1, 2, 3)
		for n := range len(backends) {
			i := p.Choose(epoch(), 7, backends)
			if i < 0 || backends[i].Tried {
				t.Fatalf("%s: attempt %d: chose %d", kind, n, i)
			}
			backends[i].Tried = true
		}
		if i := p.Choose(epoch(), 7, backends); i != -1 {
			t.Errorf("%s: chose %d, which has been tried", kind, i)
		}
	}
}

// TestRoundRobinIsSmooth holds that after every choice each backend is within one connection of its share.
func TestRoundRobinIsSmooth(t *testing.T) {
	backends := backendsOf(7, 1, 5, 3, 0, 20)
	p := policyOf(t, Config{})
	total := totalWeight(backends)
	got := make([]int, len(backends))
	for n := 1; n <= 50*total; n++ {
		got[p.Choose(epoch(), 0, backends)]++
		for i, b := range backends {
			if share := float64(n*b.Weight) / float64(total); math.Abs(float64(got[i])-share) > 2 {
				t.Fatalf("after %d connections %s has %d, its share is %.1f", n, b.Name, got[i], share)
			}
		}
	}
	for i, b := range backends {
		if got[i] != 50*b.Weight {
			t.Errorf("after 50 rounds %s has %d, want exactly %d", b.Name, got[i], 50*b.Weight)
		}
	}
}

// TestLeastConnectionsEvensOut holds that a pool comes to loads by weight from wherever it is.
func TestLeastConnectionsEvensOut(t *testing.T) {
	backends := backendsOf(10, 1, 2, 4)
	backends[3].Active, backends[4].Active = 60, 90
	p := policyOf(t, Config{Kind: LeastConnections})
	total, n := totalWeight(backends), 150
	for ; n < 100*total; n++ {
		backends[p.Choose(epoch(), 0, backends)].Active++
	}
	for _, b := range backends {
		if want := n * b.Weight / total; b.Active < want-1 || b.Active > want+1 {
			t.Errorf("%s of weight %d has %d connections, want about %d", b.Name, b.Weight, b.Active, want)
		}
	}
}

// TestConsistentHashShares holds that each backend gets its share of keys, within four standard deviations.
func TestConsistentHashShares(t *testing.T) {
	for _, n := range []int{3, 64} {
		backends := backendsOf(n, 1, 2, 5, 0, 10)
		p := policyOf(t, Config{Kind: ConsistentHash})
		const keys = 100_000
		got := make([]int, n)
		for k := range keys {
			got[p.Choose(epoch(), Key(fmt.Sprint(k)), backends)]++
		}
		for i, b := range backends {
			share := float64(b.Weight) / float64(totalWeight(backends))
			if sigma := math.Sqrt(keys * share * (1 - share)); math.Abs(float64(got[i])-keys*share) > 4*sigma {
				t.Errorf("%d backends: %s of weight %d has %d keys, want %.0f +- %.0f", n, b.Name, b.Weight, got[i], keys*share, 4*sigma)
			}
		}
	}
}

// TestConsistentHashDisruption holds that what happens to one backend moves no key between others, and that the keys of one
// that leaves are spread over all the others by their weights.
func TestConsistentHashDisruption(t *testing.T) {
	const n, keys, changed = 50, 20_000, 17
	p := policyOf(t, Config{Kind: ConsistentHash})
	backends := backendsOf(n, 1, 3)
	choose := func(b []Backend) []int {
		got := make([]int, keys)
		for k := range got {
			got[k] = p.Choose(epoch(), Key(fmt.Sprint(k)), b)
		}
		return got
	}
	before := choose(backends)
	heirs := make([]int, n)
	inherited := 0
	backends[changed].Down = true
	for k, after := range choose(backends) {
		switch {
		case before[k] == changed:
			heirs[after]++
			inherited++
		case after != before[k]:
			t.Fatalf("key %d moved from %d to %d, and neither has changed", k, before[k], after)
		}
	}
	for i, got := range heirs {
		if i == changed {
			continue
		}
		share := float64(backends[i].Weight) / float64(totalWeight(backends)-backends[changed].Weight)
		mean := float64(inherited) * share
		if math.Abs(float64(got)-mean) > 4.5*math.Sqrt(mean) {
			t.Errorf("backend %d inherited %d keys, want about %.1f", i, got, mean)
		}
	}
	backends[changed].Down = false
	backends[changed].Weight *= 4
	gained := 0
	for k, after := range choose(backends) {
		if after != before[k] && after != changed {
			t.Fatalf("key %d moved from %d to %d, which has not changed", k, before[k], after)
		}
		if after != before[k] {
			gained++
		}
	}
	if gained == 0 {
		t.Error("a greater weight gained no key")
	}
}

// TestConsistentHashAgrees holds that the choice depends on names, weights and key alone: not on the order of the list, on
// connections, on what was asked before, or on who asks.
func TestConsistentHashAgrees(t *testing.T) {
	backends := backendsOf(30, 1, 2)
	var reversed []Backend
	for _, b := range backends {
		b.Active = 5
		reversed = append([]Backend{b}, reversed...)
	}
	one, other := policyOf(t, Config{Kind: ConsistentHash}), policyOf(t, Config{Kind: ConsistentHash})
	for k := range uint64(5000) {
		a, b := one.Choose(epoch(), k, backends), other.Choose(epoch(), k, reversed)
		if backends[a].Name != reversed[b].Name {
			t.Fatalf("key %d: %s and %s", k, backends[a].Name, reversed[b].Name)
		}
		if k%100 == 0 { // another list in between, by the same policy
			fresh := policyOf(t, Config{Kind: ConsistentHash})
			if a, b := one.Choose(epoch(), k, reversed[:10]), fresh.Choose(epoch(), k, reversed[:10]); a != b {
				t.Fatalf("key %d: %d of a shorter list, want %d", k, a, b)
			}
		}
	}
}

// TestSlowStartRamps holds that a young backend's share grows in a straight line, whatever the policy.
func TestSlowStartRamps(t *testing.T) {
	const n = 20_000
	for _, kind := range []Kind{RoundRobin, ConsistentHash} {
		p := policyOf(t, Config{Kind: kind, SlowStart: time.Minute})
		backends := backendsOf(2, 10)
		backends[1].Since = epoch()
		for _, seconds := range []int{0, 15, 30, 45, 60, 3600} {
			now := epoch().Add(time.Duration(seconds) * time.Second)
			young := 0
			for k := range n {
				young += p.Choose(now, Key(fmt.Sprint(k)), backends)
			}
			w := min(1, float64(seconds)/60)
			if want := n * w / (1 + w); math.Abs(float64(young)-want) > 4*math.Sqrt(n)/2 {
				t.Errorf("%s: after %d s the young backend has %d of %d, want about %.0f", kind, seconds, young, n, want)
			}
		}
		backends[0].Down = true
		if i := p.Choose(epoch().Add(-time.Hour), 0, backends); i != 1 {
			t.Errorf("%s: %d, want the only one, although it is of the future", kind, i)
		}
	}
}

// TestNoSlowStart holds that a backend has its full weight from its first moment, even if the clock has gone back.
func TestNoSlowStart(t *testing.T) {
	for _, age := range []time.Duration{0, -time.Second} {
		p := policyOf(t, Config{})
		backends := backendsOf(2, 10)
		backends[1].Since = epoch()
		young := 0
		for range 10 {
			young += p.Choose(epoch().Add(age), 0, backends)
		}
		if young != 5 {
			t.Errorf("at the age of %v the new backend got %d of 10 connections, want 5", age, young)
		}
	}
}

// TestConcurrentChoices holds that turns stay exact when several goroutines take them; the race detector sees the rest.
func TestConcurrentChoices(t *testing.T) {
	const workers, each = 4, 3000
	for _, kind := range []Kind{RoundRobin, LeastConnections, ConsistentHash} {
		p := policyOf(t, Config{Kind: kind, SlowStart: time.Second})
		var mu sync.Mutex
		got := make(map[string]int)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				mine := backendsOf(3, 1, 2, 3)
				count := make(map[string]int)
				for k := range each {
					count[mine[p.Choose(epoch(), Key(fmt.Sprint(k)), mine)].Name]++
				}
				mu.Lock()
				defer mu.Unlock()
				for name, n := range count {
					got[name] += n
				}
			})
		}
		wg.Wait()
		for i := range 3 {
			n, want := got[fmt.Sprintf("backend-%d", i)], workers*each*(i+1)/6
			if kind != ConsistentHash && n != want {
				t.Errorf("%s: backend %d has %d, want exactly %d", kind, i, n, want)
			}
			if n%workers != 0 && kind == ConsistentHash {
				t.Errorf("%s: workers disagree: backend %d has %d", kind, i, n)
			}
		}
	}
}

// TestAbsurdNumbers holds that nothing overflows into a wrong choice.
func TestAbsurdNumbers(t *testing.T) {
	for _, kind := range kinds() {
		p := policyOf(t, Config{Kind: kind, SlowStart: time.Duration(math.MaxInt64) / 1000})
		heavy := []Backend{{Name: "a", Weight: math.MaxInt}, {Name: "b", Weight: 1, Active: math.MaxInt}}
		young := []Backend{{Name: "a", Weight: math.MaxInt, Active: -1}, {Name: "b", Weight: math.MaxInt, Active: math.MaxInt, Since: epoch()}}
		for k := range uint64(100) {
			if i := p.Choose(epoch(), Key(fmt.Sprint(k)), heavy); i != 0 {
				t.Fatalf("%s: key %d: the light one", kind, k)
			}
			if i := p.Choose(epoch().Add(time.Second), Key(fmt.Sprint(k)), young); i != 0 {
				t.Fatalf("%s: key %d: the young one", kind, k)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	if KeyAddr(netip.MustParseAddr("192.0.2.1")) != KeyAddr(netip.MustParseAddr("::ffff:192.0.2.1")) {
		t.Error("an IPv4 address has another key when it is mapped")
	}
	// Keys must never change: other dispatchers and other versions go by them.
	for _, tt := range []struct{ got, want uint64 }{
		{Key(""), 0xc3817c016ba4ff30},
		{Key("shop.example"), 0xfed386dd62a843ba},
		{KeyAddr(netip.MustParseAddr("192.0.2.1")), 0xd21f2ca35c221d8d},
		{KeyAddr(netip.MustParseAddr("2001:db8::1")), 0x4de897d954fd23d5},
	} {
		if tt.got != tt.want {
			t.Errorf("key %#x, want %#x", tt.got, tt.want)
		}
	}
	// Neighbours share no half of their bits.
	high, low := make(map[uint32]bool), make(map[uint32]bool)
	const n = 4096
	for i := range n {
		k := KeyAddr(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
		high[uint32(k>>32)], low[uint32(k)] = true, true
	}
	if len(high) < n-3 || len(low) < n-3 {
		t.Errorf("%d and %d distinct halves of %d keys", len(high), len(low), n)
	}
}
