// SPDX-License-Identifier: Apache-2.0

package netnslab

import "slices"

// sequence is the set of sequence numbers that one direction of a connection has used, as ordered, disjoint ranges that do not touch. Numbers are unwrapped to
// 64 bits against the highest one seen, so a connection may carry any amount. The zero value is empty.
type sequence struct {
	ranges  []seqRange
	high    int64 // the highest end seen
	started bool
}

type seqRange struct{ from, to int64 } // to is the first number after it

// unwrap returns the 64-bit number nearest to the highest one that has the low 32 bits seq.
func (q *sequence) unwrap(seq uint32) int64 {
	return q.high + int64(int32(seq-uint32(q.high)))
}

// covers reports whether seq was used.
func (q *sequence) covers(seq uint32) bool {
	if !q.started {
		return false
	}
	n := q.unwrap(seq)
	return slices.ContainsFunc(q.ranges, func(r seqRange) bool { return r.from <= n && n < r.to })
}

// add marks n numbers from seq as used and returns how many of them were so before.
func (q *sequence) add(seq, n uint32) int64 {
	if !q.started {
		// The first number's upper half is arbitrary: leave room below it.
		q.high = 1<<32 + int64(seq)
		q.started = true
	}
	from := q.unwrap(seq)
	to := from + int64(n)
	q.high = max(q.high, to)

	// The common case, in-order data: grow the last range.
	if last := len(q.ranges) - 1; last >= 0 && q.ranges[last].to == from {
		q.ranges[last].to = to
		return 0
	}
	// Every range that touches [from, to) becomes one with it.
	first, _ := slices.BinarySearchFunc(q.ranges, from, func(r seqRange, from int64) int {
		if r.to < from {
			return -1
		}
		return 1
	})
	var again int64
	union := seqRange{from, to}
	end := first
	for ; end < len(q.ranges) && q.ranges[end].from <= to; end++ {
		r := q.ranges[end]
		again += max(0, min(to, r.to)-max(from, r.from))
		union.from, union.to = min(union.from, r.from), max(union.to, r.to)
	}
	q.ranges = slices.Replace(q.ranges, first, end, union)
	return again
}
