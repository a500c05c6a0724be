// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"math"
	"slices"
	"time"
)

// Latencies collects durations, for percentiles. The zero value is empty. It is not safe for concurrent use.
type Latencies struct {
	all    []time.Duration
	sorted bool
}

// Add records one duration.
func (l *Latencies) Add(d time.Duration) {
	l.all = append(l.all, d)
	l.sorted = false
}

// Len returns how many were recorded.
func (l *Latencies) Len() int { return len(l.all) }

// Longest returns the longest, 0 if there is none.
func (l *Latencies) Longest() time.Duration { return l.Quantile(1) }

// Median returns the middle one, 0 if there is none.
func (l *Latencies) Median() time.Duration { return l.Quantile(0.5) }

// Quantile returns the smallest recorded duration that at least the fraction q of all does not exceed (the nearest rank); 0 if there is none.
func (l *Latencies) Quantile(q float64) time.Duration {
	if len(l.all) == 0 {
		return 0
	}
	if !l.sorted {
		slices.Sort(l.all)
		l.sorted = true
	}
	rank := int(math.Ceil(q * float64(len(l.all))))
	return l.all[min(max(rank, 1), len(l.all))-1]
}
