// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"sync"
	"testing"
)

// TestShellDrawsNoHerd holds that between two reports sessions fill backends up to one another, as water does: in the end nobody who
// got a session has more than one session's load above anybody else.
func TestShellDrawsNoHerd(t *testing.T) {
	const cost = 0.01
	p := policyOf(t, Config{Kind: Shell, SessionLoad: cost})
	backends := backendsOf(16, 1, 2, 4)
	for i := range backends {
		backends[i].Load, backends[i].Report = 0.05*float64(i), 1
	}
	got := make([]int, len(backends))
	for range 500 {
		got[p.Choose(epoch(), 0, backends)]++
	}
	level := func(i, sessions int) float64 {
		return (backends[i].Load + cost*float64(sessions)) / float64(backends[i].Weight)
	}
	for i := range backends {
		for j := range backends {
			// The last session that i got, it got at a time when j, which has only grown since, was no lower.
			if got[i] > 0 && level(i, got[i]-1) > level(j, got[j])+1e-9 {
				t.Errorf("%s got its %d-th session at %.3f, while %s is at %.3f", backends[i].Name, got[i], level(i, got[i]-1), backends[j].Name, level(j, got[j]))
			}
		}
	}
}

// TestShellLearnsCost has numbers worked out by hand.
func TestShellLearnsCost(t *testing.T) {
	for _, tt := range []struct {
		name     string
		backends []Backend
		want     float64
	}{
		// (0.5 + 0.3) / (30 + 10)
		{"all have reported", []Backend{{Load: 0.5, Report: 1, Active: 30}, {Load: 0.3, Report: 1, Active: 10}}, 0.02},
		// The second has not: 0.5 / 50.
		{"one has not", []Backend{{Load: 0.5, Report: 1, Active: 50}, {Load: 0.3, Active: 10}}, 0.01},
		// Two sessions, but two backends count as if they had twenty: 0.8 / 20.
		{"few sessions", []Backend{{Load: 0.5, Report: 1, Active: 2}, {Load: 0.3, Report: 1}}, 0.04},
		// The dead one's last word does not count: 0.5 / 50.
		{"one is down", []Backend{{Load: 0.5, Report: 1, Active: 50}, {Load: 1, Report: 9, Down: true}}, 0.01},
		{"idle", []Backend{{Report: 1, Active: 50}}, leastCost},
		{"nobody", nil, leastCost},
		{"no loads", []Backend{{Load: math.NaN(), Report: 1}, {Load: math.Inf(1), Report: 1}, {Load: -1, Report: 1}}, leastCost},
		// (1 + 0.5) / (0 + 50): an impossible count is none.
		{"negative count", []Backend{{Load: 1, Report: 1, Active: -50}, {Load: 0.5, Report: 1, Active: 50}}, 0.03},
	} {
		p := &shell{}
		if got := p.sessionCost(tt.backends); math.Abs(got-tt.want) > 1e-12 {
			t.Errorf("%s: cost %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestShellTakesTurns holds that idle backends that never report another load share short sessions evenly.
func TestShellTakesTurns(t *testing.T) {
	p := policyOf(t, Config{Kind: Shell})
	backends := backendsOf(5, 1)
	got := make([]int, len(backends))
	for n := range uint64(100) {
		for i := range backends {
			backends[i].Report = n + 1
		}
		got[p.Choose(epoch(), 0, backends)]++
	}
	for i, n := range got {
		if n != 20 {
			t.Errorf("backend %d has %d of 100 sessions, want 20", i, n)
		}
	}
}

// TestShellSharedByWorkers holds that choices made at the same time count one another.
func TestShellSharedByWorkers(t *testing.T) {
	const workers, each = 4, 2500
	p := policyOf(t, Config{Kind: Shell, SessionLoad: 0.001})
	var mu sync.Mutex
	got := make([]int, 5)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			mine, count := backendsOf(len(got), 1), make([]int, len(got))
			for i := range mine {
				mine[i].Report = 7
			}
			for range each {
				count[p.Choose(epoch(), 0, mine)]++
			}
			mu.Lock()
			defer mu.Unlock()
			for i, n := range count {
				got[i] += n
			}
		})
	}
	wg.Wait()
	for i, n := range got {
		if n != workers*each/len(got) {
			t.Errorf("backend %d has %d sessions, want %d", i, n, workers*each/len(got))
		}
	}
}

// TestPowerOfTwoShares holds that with equal loads shares are by weight, within four standard deviations.
func TestPowerOfTwoShares(t *testing.T) {
	const n = 100_000
	p := policyOf(t, Config{Kind: PowerOfTwo})
	backends := backendsOf(20, 1, 1, 3)
	backends[4].Down = true
	total := float64(totalWeight(backends) - backends[4].Weight)
	got := make([]int, len(backends))
	for range n {
		got[p.Choose(epoch(), 0, backends)]++
	}
	for i, b := range backends {
		share := float64(b.Weight) / total
		if b.Down {
			share = 0
		}
		if math.Abs(float64(got[i])-n*share) > 4*math.Sqrt(n*share) {
			t.Errorf("%s of weight %d has %d, want about %.0f", b.Name, b.Weight, got[i], n*share)
		}
	}
}

// TestPowerOfTwoBeatsOne holds what the policy is known for: n connections that stay, on n backends, leave the fullest with few.
// One random choice leaves about ln n / ln ln n, 6 or 7 here; two leave about ln ln n / ln 2 + 1, 4.
func TestPowerOfTwoBeatsOne(t *testing.T) {
	const n = 2000
	p := policyOf(t, Config{Kind: PowerOfTwo})
	backends := backendsOf(n, 1)
	most := 0
	for range n {
		i := p.Choose(epoch(), 0, backends)
		backends[i].Active++
		most = max(most, backends[i].Active)
	}
	if most > 4 {
		t.Errorf("the fullest backend has %d connections", most)
	}
}
