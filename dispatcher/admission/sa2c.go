// SPDX-License-Identifier: Apache-2.0

package admission

import "time"

// sa2c is SARA's session-aware admission control (SARA 12-16).
//
//	             x: 0 ────── T1 ─────────── T2 ─────────── T3 ─────────── C ──────
//	   new sessions: 0        0 ─ rising ─► 1              1              1
//	established ones: 0        0             0              0 ─ rising ─► 1
//	          state:  Accepting   Thinning      Closed         Degrading     Full
//
// Above them T2 and T3 come down (eq. 4), and return when x is below T1. Decisions follow one another faster the more is refused (eq. 3).
type sa2c struct {
	config     Config
	operator   Thresholds // what the operator has set
	thresholds Thresholds // what holds for the next decision
	interval   time.Duration
}

func newSA2C(config Config) *sa2c {
	t := Thresholds{T1: config.T1, T2: config.T2, T3: config.T3, C: config.C}
	return &sa2c{config: config, operator: t, thresholds: t, interval: config.Interval}
}

// Update implements Policy.
func (p *sa2c) Update(loads Loads) Decision {
	x, cluster := loads.decisive(p.config.Alpha)
	if x < p.operator.T1 {
		p.thresholds, p.interval = p.operator, p.config.Interval
	}
	d := Decision{Load: x, Cluster: cluster, Thresholds: p.thresholds}
	if p.config.Reading == Literal {
		d.New, d.Established = p.thresholds.refuseLiteral(x)
	} else {
		d.New, d.Established = p.thresholds.refuse(x)
	}
	d.State = stateOf(d.New, d.Established)
	p.interval = nextInterval(p.interval, d.New, p.config.Floor)
	d.Next = p.interval
	if !p.config.FixedThresholds && x >= p.operator.T1 {
		p.move(x)
	}
	return d
}

func (p *sa2c) move(x float64) {
	if p.config.Reading == Literal {
		p.thresholds = p.thresholds.moveLiteral(x, p.config.Gap)
		return
	}
	p.thresholds = p.thresholds.move(x, p.config.Gap, p.operator)
}

// nextInterval is eq. 3 (SARA 14): T_(i+1) = (1-p) T_i, with p the probability that a new session is refused. The print has no end to it; the
// floor is one.
func nextInterval(interval time.Duration, p float64, floor time.Duration) time.Duration {
	return max(floor, time.Duration((1-p)*float64(interval)))
}
