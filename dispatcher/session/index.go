// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/rehome-net/rehome/dispatcher/session/slab"
)

// index finds records by their digests. A digest has a home among the buckets; what has no room there is in the next bucket that has. Which of the
// candidates is meant, the caller tells by the full key (SARA 10).
//
// A search costs one line of the CPU's cache, and no branch depends on where in it the record stands, so the CPU can begin what comes next
// while it waits for memory.
type index struct{ buckets []bucket }

// bucket is one line of the CPU's cache, and on average thirteen fifteenths full at most: with as many records as there may be, one in fifteen is not
// at home. More room would cost more than it saves: the smaller the index, the more of it stays in the CPU's cache between records that do not. That is
// why numbers have three bytes.
type bucket struct {
	// tags are a byte of each record's digest; 0: free.
	tags [bucketSize]uint8
	refs [refSize * bucketSize]uint8
	// passed counts the records that are elsewhere because there was no room here. A search goes on only for these, so nothing needs to move
	// when a record goes.
	passed uint32
}

const (
	bucketSize = 15
	fullBucket = 13 // on average, when the index is full
	refSize    = 3
	// maxRecords is how many records have numbers.
	maxRecords = 1<<(8*refSize) - 1
)

func (b *bucket) ref(i int) uint32 {
	r := b.refs[refSize*i : refSize*i+refSize]
	return uint32(r[0]) | uint32(r[1])<<8 | uint32(r[2])<<16
}

func (b *bucket) set(i int, tag uint8, ref uint32) {
	b.tags[i] = tag
	r := b.refs[refSize*i : refSize*i+refSize]
	r[0], r[1], r[2] = uint8(ref), uint8(ref>>8), uint8(ref>>16)
}

// reserve makes an empty index for n records.
func (x *index) reserve(n int) (err error) {
	x.buckets, err = slab.Make[bucket](n/fullBucket + 1)
	return err
}

// free gives the memory back.
func (x *index) free() error { return slab.Free(x.buckets) }

// home is where the search for a digest begins. The digest is taken as a fraction of the whole: no division, and any size will do.
func (x *index) home(digest uint32) int { return int(uint64(digest) * uint64(len(x.buckets)) >> 32) }

// after returns the bucket behind p.
func (x *index) after(p int) int {
	if p++; p < len(x.buckets) {
		return p
	}
	return 0
}

// tagOf returns the end of the digest that does not say where its home is.
func tagOf(digest uint32) uint8 { return max(1, uint8(digest)) }

// candidates returns the records that may have the digest.
func (x *index) candidates(digest uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if len(x.buckets) == 0 {
			return
		}
		for p := x.home(digest); ; p = x.after(p) {
			b := &x.buckets[p]
			for m := b.having(tagOf(digest)); m != 0; m &= m - 1 {
				if !yield(b.ref(first(m))) {
					return
				}
			}
			if b.passed == 0 {
				return
			}
		}
	}
}

// add takes in a record. There must be room.
func (x *index) add(digest, ref uint32) {
	for p := x.home(digest); ; p = x.after(p) {
		b := &x.buckets[p]
		if m := b.having(0); m != 0 {
			b.set(first(m), tagOf(digest), ref)
			return
		}
		b.passed++
	}
}

// remove takes out a record that is there.
func (x *index) remove(digest, ref uint32) {
	for p := x.home(digest); ; p = x.after(p) {
		b := &x.buckets[p]
		for m := b.having(tagOf(digest)); m != 0; m &= m - 1 {
			if i := first(m); b.ref(i) == ref {
				b.set(i, 0, 0)
				return
			}
		}
		b.passed--
	}
}

// having returns the places that have a tag, one bit for each: see first.
func (b *bucket) having(tag uint8) uint64 {
	low := equal(binary.LittleEndian.Uint64(b.tags[:8]), tag)
	high := equal(binary.LittleEndian.Uint64(b.tags[7:])>>8, tag) // its last byte is none
	return low>>7 | high<<8>>14
}

// first returns the first of the places that having has found: bit 8i stands for place i, bit 8i+1 for place 8+i.
func first(places uint64) int {
	bit := bits.TrailingZeros64(places)
	return bit>>3 + bit&1<<3
}

// equal returns the highest bit of each byte of eight that is b.
func equal(eight uint64, b uint8) uint64 {
	const low, ones = 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	x := eight ^ ones*uint64(b) // the bytes that are meant are 0 now
	return ^((x&low + low) | x | low)
}
