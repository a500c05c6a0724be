// SPDX-License-Identifier: Apache-2.0

package session

// index finds records by their digests: open addressing with linear probing, at most two thirds full, without tombstones. It knows digests and
// references only; whose digests collide, the caller tells apart by the full key (SARA 10).
type index []slot

// slot is free when ref is 0.
type slot struct{ digest, ref uint32 }

// newIndex makes an index for n records. Memory that is not written costs nothing yet: the kernel maps it at the first write.
func newIndex(n int) index { return make(index, n+n/2+1) }

// home is where the search for a digest begins. The digest is taken as a fraction of the whole: no division, and any size will do.
func (x index) home(digest uint32) int { return int(uint64(digest) * uint64(len(x)) >> 32) }

// after returns the place behind p.
func (x index) after(p int) int {
	if p++; p < len(x) {
		return p
	}
	return 0
}

// next returns the first reference with that digest at or after place p, and the place behind it; 0 when there is none. The first
// place to ask for is the digest's home.
func (x index) next(digest uint32, p int) (ref uint32, after int) {
	for {
		s := x[p]
		p = x.after(p)
		if s.ref == 0 || s.digest == digest {
			return s.ref, p
		}
	}
}

func (x index) add(digest, ref uint32) {
	p := x.home(digest)
	for x[p].ref != 0 {
		p = x.after(p)
	}
	x[p] = slot{digest, ref}
}

// remove takes out a reference that is there, and closes the gap (Knuth, volume 3, 6.4, algorithm R).
func (x index) remove(digest, ref uint32) {
	gap := x.home(digest)
	for x[gap].ref != ref {
		gap = x.after(gap)
	}
	for p := x.after(gap); x[p].ref != 0; p = x.after(p) {
		// It may fill the gap unless its own search begins behind the gap.
		if x.distance(x.home(x[p].digest), p) >= x.distance(gap, p) {
			x[gap] = x[p]
			gap = p
		}
	}
	x[gap] = slot{}
}

// distance is how many places a search goes on from one place to another.
func (x index) distance(from, to int) int {
	if to < from {
		to += len(x)
	}
	return to - from
}
