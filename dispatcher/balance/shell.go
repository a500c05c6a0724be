// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"math"
	"sync"
	"time"
)

// shell takes the short-term forecasted least loaded backend (SARA 22, eq. 9): the minimum of Backend.Load, which is eq. 8's value.
//
// Reports come by the interval and sessions by the millisecond: the backend with the least load would get all of them until it reports
// again. So each session given since a backend's last report counts as much as a session costs, and what is compared is
//
//	(load + given * cost) / weight
//
// with the weight of the slow start. Equal backends take turns. A backend without report counts as its connections times the cost;
// if there is no report at all, that is least connections.
type shell struct {
	ramp ramp
	// cost is what a session adds to a load; 0 when it is to be learned.
	cost float64

	mu    sync.Mutex
	given []given // by place
	last  int     // the place chosen last
}

// given counts the sessions that a backend got since a report.
type given struct {
	report   uint64
	sessions int
}

// Choose implements Policy.
func (p *shell) Choose(now time.Time, _ uint64, candidates []Backend) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.given) != len(candidates) {
		p.given, p.last = make([]given, len(candidates)), len(candidates)-1
	}
	cost := p.sessionCost(candidates)
	best, least := -1, math.Inf(1)
	for i, n := p.last, len(candidates); n > 0; n-- {
		if i++; i == len(candidates) {
			i = 0
		}
		b := &candidates[i]
		w := p.ramp.weight(now, b)
		if w == 0 {
			continue
		}
		if load := p.load(i, b, cost) / float64(w); load < least || best < 0 {
			best, least = i, load
		}
	}
	if best >= 0 {
		p.give(best, &candidates[best])
	}
	return best
}

// load returns what a backend's load will have become by the sessions that are on their way to it.
func (p *shell) load(place int, b *Backend, cost float64) float64 {
	if !b.reported() {
		return float64(max(b.Active, 0)) * cost
	}
	if p.given[place].report != b.Report {
		return b.Load
	}
	return b.Load + float64(p.given[place].sessions)*cost
}

// give counts a session that the backend gets.
func (p *shell) give(place int, b *Backend) {
	p.last = place
	if g := &p.given[place]; g.report != b.Report {
		*g = given{report: b.Report}
	}
	p.given[place].sessions++
}

// account implements accountant.
func (p *shell) account(place int, candidates []Backend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.given) == len(candidates) {
		p.give(place, &candidates[place])
	}
}

const (
	// leastCost keeps idle backends, whose connections seem to cost nothing, from drawing a herd.
	leastCost = 1e-4
	// usualSessions is how many sessions a backend is taken to have at least. What else it does would count as the
	// cost of the first few.
	usualSessions = 10
)

// sessionCost learns what a session costs from what has been reported: all load by all connections.
func (p *shell) sessionCost(candidates []Backend) float64 {
	if p.cost > 0 {
		return p.cost
	}
	load, active, n := 0.0, 0, 0
	for i := range candidates {
		if b := &candidates[i]; b.reported() && !b.Down {
			load += b.Load
			active += min(max(b.Active, 0), maxActive)
			n++
		}
	}
	return max(load/float64(max(active, n*usualSessions, 1)), leastCost)
}

// reported tells whether the load can be gone by.
func (b *Backend) reported() bool { return b.Report != 0 && b.Load >= 0 && !math.IsInf(b.Load, 1) }
