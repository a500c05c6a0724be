// SPDX-License-Identifier: Apache-2.0

package balance

import "time"

const (
	// weightUnit is one of an operator's weights in the integers that policies compute with, fine enough for a slow start.
	weightUnit = 1 << 16
	// maxWeight and maxActive keep products within 63 bits; they are far above anything real.
	maxWeight = 1 << 14
	maxActive = 1 << 32
)

// ramp is the slow start: how long a backend takes to its full weight.
type ramp struct{ length time.Duration }

// weight returns what a backend counts at now, in weightUnit; 0 means that it takes nothing.
func (r ramp) weight(now time.Time, b *Backend) int64 {
	if !b.takes() {
		return 0
	}
	full := int64(min(b.Weight, maxWeight)) * weightUnit
	// The zero Time is asked for first: a Sub that must saturate costs ten times the rest of the loop.
	length := r.length
	if b.SlowStart > 0 {
		length = b.SlowStart
	}
	if length <= 0 || b.Since.IsZero() {
		return full
	}
	age := now.Sub(b.Since)
	if age >= length {
		return full
	}
	// A backend at its very start, or one whose clock is ahead, still serves when nobody else does.
	return max(1, int64(float64(full)*float64(age)/float64(length)))
}
