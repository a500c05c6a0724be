// SPDX-License-Identifier: Apache-2.0

package criu

const (
	// maxTrackedRounds bounds the pre-dumps of a tree. Each stops it for some milliseconds.
	maxTrackedRounds = 4
	// enoughBytes is what may be left for the freeze: a round that finds less is the last one.
	enoughBytes = 16 << 20
)

// rounds decides how often a running tree's memory is sent ahead where the kernel tracks changes. A round sends what has changed since the one
// before, and takes room for it at the target.
type rounds struct {
	room                         uint64 // for what is sent twice, in bytes
	first, previous, last, total uint64
	count                        int
}

// add takes in how many bytes a round has sent.
func (r *rounds) add(sent uint64) {
	if r.count == 0 {
		r.first = sent
	}
	r.count++
	r.previous, r.last = r.last, sent
	r.total += sent
}

// another reports whether one more round is of use: a tree that writes as fast as its memory is sent is not caught up with.
func (r *rounds) another() bool {
	switch {
	case r.count == 0:
		return true
	case r.count >= maxTrackedRounds, r.last < enoughBytes:
		return false
	case r.count > 1 && r.last > r.previous/4*3:
		return false
	}
	return r.total-r.first+r.last <= r.room
}
