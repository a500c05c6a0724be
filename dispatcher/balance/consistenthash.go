// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// consistentHash is weighted rendezvous hashing. Key and name give each backend a number u, as if drawn evenly from (0, 1);
// -ln(u)/weight is then exponentially distributed with the weight as its rate, and the smallest one wins with the probability of
// its share of all weights. A backend's number depends on no other backend, so one that leaves takes only its own keys along, and
// one whose weight grows takes keys from others and gives none away.
//
// It reads every backend for every choice, where Maglev's table (NSDI 2016) needs one look; but that table must be built anew for
// every change, moves more keys than it must, and has no place for weights that grow by the second.
type consistentHash struct {
	ramp ramp
	// roster has the names' hashes of the last call, replaced when the names are others.
	roster atomic.Pointer[roster]
}

type roster struct {
	names  []string
	hashes []uint64
}

// Choose implements Policy.
func (p *consistentHash) Choose(now time.Time, key uint64, candidates []Backend) int {
	r := p.roster.Load()
	if r == nil || !r.fits(candidates) {
		r = newRoster(candidates)
		p.roster.Store(r)
	}
	best, lowest := -1, math.Inf(1)
	for i := range candidates {
		w := float64(p.ramp.weight(now, &candidates[i]))
		if w == 0 {
			continue
		}
		u := (float64(mix(key^r.hashes[i])>>11) + 0.5) / (1 << 53)
		// 1-u is no more than -ln(u): most backends are out without a logarithm.
		if 1-u >= lowest*w {
			continue
		}
		if cost := -math.Log(u) / w; cost < lowest {
			best, lowest = i, cost
		}
	}
	return best
}

func newRoster(candidates []Backend) *roster {
	r := &roster{names: make([]string, len(candidates)), hashes: make([]uint64, len(candidates))}
	for i := range candidates {
		r.names[i], r.hashes[i] = candidates[i].Name, Key(candidates[i].Name)
	}
	return r
}

func (r *roster) fits(candidates []Backend) bool {
	if len(r.names) != len(candidates) {
		return false
	}
	for i := range candidates {
		if r.names[i] != candidates[i].Name {
			return false
		}
	}
	return true
}
