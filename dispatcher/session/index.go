// SPDX-License-Identifier: Apache-2.0

package session

import (
	"iter"

	"github.com/rehome-net/rehome/dispatcher/session/slab"
)

// index finds records by their digests. A digest has a home among the buckets; what has no room there is in the next bucket that has. Which of the
// candidates is meant, the caller tells by the full key (SARA 10).
//
// A search costs one line of the CPU's cache.
type index struct{ buckets []bucket }

// bucket is one line of the CPU's cache: numbers have three bytes, and so there are as many of them as in one line of tags.
type bucket struct {
	tags tags
	refs [refSize * perLine]uint8
	// passed counts the records that are elsewhere because there was no room here. A search goes on only for these, so nothing needs to move
	// when a record goes.
	passed uint32
}

const (
	refSize = 3
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
	x.buckets, err = slab.Make[bucket](n/fullLine + 1)
	return err
}

// free gives the memory back.
func (x *index) free() error { return slab.Free(x.buckets) }

// home is where the search for a digest begins.
func (x *index) home(digest uint32) int { return homeOf(digest, len(x.buckets)) }

// after returns the bucket behind p.
func (x *index) after(p int) int {
	if p++; p < len(x.buckets) {
		return p
	}
	return 0
}

// candidates returns the records that may have the digest.
func (x *index) candidates(digest uint32) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		p := x.home(digest)
		for range x.buckets { // each may have been passed, by records that came and went
			b := &x.buckets[p]
			for m := b.tags.having(tagOf(digest)); m != 0; m &= m - 1 {
				if !yield(b.ref(first(m))) {
					return
				}
			}
			if b.passed == 0 {
				return
			}
			p = x.after(p)
		}
	}
}

// add takes in a record. There must be room.
func (x *index) add(digest, ref uint32) {
	for p := x.home(digest); ; p = x.after(p) {
		b := &x.buckets[p]
		if m := b.tags.having(0); m != 0 {
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
		for m := b.tags.having(tagOf(digest)); m != 0; m &= m - 1 {
			if i := first(m); b.ref(i) == ref {
				b.set(i, 0, 0)
				return
			}
		}
		b.passed--
	}
}
