// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/bits"

	"github.com/rehome-net/rehome/dispatcher/session/slab"
)

// index finds records by their digests: open addressing with linear probing, at most two thirds full, without tombstones. It is small
// so that much of it stays in the CPU's cache: a slot is a record's number and, in the bits above it, the lowest bits of the
// digest. Which of the candidates is meant, the caller tells by the full key (SARA 10).
type index struct {
	slots []uint32 // 0: free
	width int      // bits of a number
	// digest computes a record's digest anew, for the few that move when another one goes.
	digest func(ref uint32) uint32
}

// newIndex makes an index for records with the numbers 1 to n. Memory that is not written costs nothing yet: the kernel maps it
// at the first write.
func newIndex(n int, digest func(ref uint32) uint32) index {
	return index{slots: slab.Make[uint32](n + n/2 + 1), width: widthOf(n), digest: digest}
}

// widthOf returns how many bits the numbers up to n need; no table has so many records that none are left for the digest.
func widthOf(n int) int { return bits.Len(uint(n)) }

// home is where the search for a digest begins. The digest is taken as a fraction of the whole: no division, and any size will do.
func (x *index) home(digest uint32) int { return int(uint64(digest) * uint64(len(x.slots)) >> 32) }

// after returns the place behind p.
func (x *index) after(p int) int {
	if p++; p < len(x.slots) {
		return p
	}
	return 0
}

// next returns the first candidate at or after place p, and the place behind it; 0 when there is none. The first place to
// ask for is the digest's home.
func (x *index) next(digest uint32, p int) (ref uint32, after int) {
	for {
		s := x.slots[p]
		p = x.after(p)
		if s == 0 {
			return 0, p
		}
		if (s^digest<<x.width)>>x.width == 0 {
			return s & (1<<x.width - 1), p
		}
	}
}

func (x *index) add(digest, ref uint32) {
	p := x.home(digest)
	for x.slots[p] != 0 {
		p = x.after(p)
	}
	x.slots[p] = digest<<x.width | ref
}

// remove takes out a record that is there, and closes the gap (Knuth, volume 3, 6.4, algorithm R).
func (x *index) remove(digest, ref uint32) {
	gap := x.home(digest)
	for x.slots[gap] != digest<<x.width|ref {
		gap = x.after(gap)
	}
	for p := x.after(gap); x.slots[p] != 0; p = x.after(p) {
		home := x.home(x.digest(x.slots[p] & (1<<x.width - 1)))
		// It may fill the gap unless its own search begins behind the gap.
		if x.distance(home, p) >= x.distance(gap, p) {
			x.slots[gap] = x.slots[p]
			gap = p
		}
	}
	x.slots[gap] = 0
}

// distance is how many places a search goes on from one place to another.
func (x *index) distance(from, to int) int {
	if to < from {
		to += len(x.slots)
	}
	return to - from
}
