// SPDX-License-Identifier: Apache-2.0

package admission

import "math"

// Share is a probability as a packet program has it, which knows no fractions: in units of 2^-32, to be compared with a
// random number of 32 bits. The greatest Share means always, and not all but one of 2^32 times.
type Share uint32

// always refuses everything.
const always Share = math.MaxUint32

// ShareOf rounds a probability down. What is below 0, or no number, is 0; what is above 1 is 1.
func ShareOf(p float64) Share {
	switch {
	case p >= 1:
		return always
	case p > 0:
		return min(Share(p*(1<<32)), always-1)
	}
	return 0
}

// Refuses tells whether a packet is refused, given a random number. The program in the kernel compares in the same way.
func (s Share) Refuses(random uint32) bool { return s == always || random < uint32(s) }

// Probability returns the share as a number from 0 to 1.
func (s Share) Probability() float64 {
	if s == always {
		return 1
	}
	return float64(s) / (1 << 32)
}
