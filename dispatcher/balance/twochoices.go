// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"sync/atomic"
	"time"
)

// powerOfTwo draws two backends, each with the probability of its share of all weights, and takes the one with fewer connections for its
// weight (Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, 2001). Two dispatchers that know little of each other do
// not run to the same backend, as they do when both look for the least.
type powerOfTwo struct {
	ramp ramp
	// draws numbers the random draws. They are the same after every start: what is drawn needs to be even, not secret.
	draws atomic.Uint64
}

// Choose implements Policy.
func (p *powerOfTwo) Choose(now time.Time, _ uint64, candidates []Backend) int {
	sum := int64(0)
	for i := range candidates {
		sum += p.ramp.weight(now, &candidates[i])
	}
	if sum == 0 {
		return -1
	}
	one, oneWeight := p.draw(now, candidates, sum, -1)
	if sum == oneWeight {
		return one
	}
	two, twoWeight := p.draw(now, candidates, sum-oneWeight, one)
	if loadOf(&candidates[two], twoWeight).less(loadOf(&candidates[one], oneWeight)) {
		return two
	}
	return one
}

// draw returns a backend by weight, and its weight; sum is all weights without that of the backend that is left out.
func (p *powerOfTwo) draw(now time.Time, candidates []Backend, sum int64, without int) (place int, weight int64) {
	// The remainder favours small numbers by at most sum/2^63: nothing.
	at := int64(mix(p.draws.Add(1))>>1) % sum
	for i := range candidates {
		w := p.ramp.weight(now, &candidates[i])
		if i == without || w == 0 {
			continue
		}
		place, weight = i, w
		if at -= w; at < 0 {
			break
		}
	}
	return place, weight
}
