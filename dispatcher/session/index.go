// SPDX-License-Identifier: Apache-2.0

package session

import "math/bits"

// index finds records by their digests: open addressing with linear probing, never more than half full, without tombstones. It knows
// digests and references only; whose digests collide, the caller tells apart by the full key (SARA 10).
type index struct {
	slots []slot
	mask  uint32
}

// slot is free when ref is 0.
type slot struct{ digest, ref uint32 }

// newIndex makes an index for n records. Memory that is not written costs nothing yet: the kernel maps it at the first write.
func newIndex(n int) index {
	size := max(2, 1<<bits.Len(uint(2*n-1)))
	return index{slots: make([]slot, size), mask: uint32(size - 1)}
}

// next returns the first reference with that digest at or after place p, and the place after it; 0 when there is none. The first
// place to ask for is the digest itself.
func (x *index) next(digest, p uint32) (ref, after uint32) {
	for {
		s := x.slots[p&x.mask]
		if s.ref == 0 || s.digest == digest {
			return s.ref, p + 1
		}
		p++
	}
}

func (x *index) add(digest, ref uint32) {
	p := digest
	for x.slots[p&x.mask].ref != 0 {
		p++
	}
	x.slots[p&x.mask] = slot{digest, ref}
}

// remove takes out a reference that is there, and closes the gap (Knuth, volume 3, 6.4, algorithm R).
func (x *index) remove(digest, ref uint32) {
	p := digest
	for x.slots[p&x.mask].ref != ref {
		p++
	}
	gap := p & x.mask
	for q := gap + 1; ; q++ {
		s := x.slots[q&x.mask]
		if s.ref == 0 {
			break
		}
		// It may fill the gap unless its own probing starts behind the gap.
		if (q-s.digest)&x.mask >= (q-gap)&x.mask {
			x.slots[gap] = s
			gap = q & x.mask
		}
	}
	x.slots[gap] = slot{}
}
