// SPDX-License-Identifier: Apache-2.0

package vitals

import "slices"

// windowSize is how many datagrams of a host are remembered, and so how far one may be overtaken and still count.
const windowSize = 32

// window remembers times of sending: an anti-replay window in the sense of RFC 4303 section 3.4.3, for numbers that have gaps, which a
// bit map cannot hold.
type window struct {
	// seen is sorted; all that is not above floor counts as seen.
	seen  []int64
	floor int64
}

// add takes a number, and reports whether it is new.
func (w *window) add(n int64) bool {
	if n <= w.floor {
		return false
	}
	i, found := slices.BinarySearch(w.seen, n)
	if found {
		return false
	}
	if len(w.seen) < windowSize {
		w.seen = slices.Insert(w.seen, i, n)
		return true
	}
	if i == 0 {
		w.floor = max(w.floor, n) // older than all that is remembered: taken once, and then never again
		return true
	}
	w.floor = w.seen[0]
	copy(w.seen, w.seen[1:i])
	w.seen[i-1] = n
	return true
}
