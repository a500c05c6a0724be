// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"sync"
	"time"
)

// load is a backend's connections for its weight, as a fraction.
type load struct{ active, weight int64 }

// anyLoad is above every backend's load.
func anyLoad() load { return load{active: 1, weight: 0} }

func loadOf(b *Backend, weight int64) load {
	return load{active: int64(min(max(b.Active, 0), maxActive)), weight: weight}
}

// less compares without dividing.
func (l load) less(than load) bool { return l.active*than.weight < than.active*l.weight }

// turns takes turns by weight (nginx's smooth weighted round robin): at each choice every backend that takes part earns its
// weight, the richest is chosen and pays what all have earned. Credits always sum up to zero, so who is left out for a
// while neither gains nor loses.
type turns struct {
	ramp ramp

	mu     sync.Mutex
	credit []int64 // by place
}

// next returns whose turn it is among the candidates that have no more load than limit.
func (t *turns) next(now time.Time, candidates []Backend, limit load) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.credit) != len(candidates) {
		t.credit = make([]int64, len(candidates))
	}
	best, sum := -1, int64(0)
	for i := range candidates {
		w := t.ramp.weight(now, &candidates[i])
		if w == 0 || limit.less(loadOf(&candidates[i], w)) {
			continue
		}
		t.credit[i] += w
		sum += w
		if best < 0 || t.credit[i] > t.credit[best] {
			best = i
		}
	}
	if best >= 0 {
		t.credit[best] -= sum
	}
	return best
}

// roundRobin takes turns among all.
type roundRobin struct{ turns turns }

// Choose implements Policy.
func (p *roundRobin) Choose(now time.Time, _ uint64, candidates []Backend) int {
	return p.turns.next(now, candidates, anyLoad())
}

// leastConnections takes turns among those with the least load. Without the turns an idle pool's first backend would get
// every short connection.
type leastConnections struct{ turns turns }

// Choose implements Policy.
func (p *leastConnections) Choose(now time.Time, _ uint64, candidates []Backend) int {
	best, alone, least := -1, false, anyLoad()
	for i := range candidates {
		w := p.turns.ramp.weight(now, &candidates[i])
		if w == 0 {
			continue
		}
		switch l := loadOf(&candidates[i], w); {
		case best < 0 || l.less(least):
			best, alone, least = i, true, l
		case !least.less(l):
			alone = false
		}
	}
	if best < 0 || alone {
		return best
	}
	return p.turns.next(now, candidates, least)
}
