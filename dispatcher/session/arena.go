// SPDX-License-Identifier: Apache-2.0

package session

import "github.com/rehome-net/rehome/dispatcher/session/slab"

// A page of 2^15 flows is as large as a large page of memory; making one takes a third of a millisecond.
const (
	pageBits = 15
	pageSize = 1 << pageBits
)

// arena keeps records of one kind, which refer to one another by number. Records never move, so growing stops nobody, and
// have no pointers, so the garbage collector passes by. Number 0 is no record. What is freed is used again, last first.
type arena[T any, P record[T]] struct {
	pages []*[pageSize]T
	free  uint32 // chained by link
	top   uint32 // the highest number ever in use
	used  int
}

// record is a type with room for the chain of free ones.
type record[T any] interface {
	*T
	link() *uint32
}

func (a *arena[T, P]) at(ref uint32) *T { return &a.pages[ref>>pageBits][ref&(pageSize-1)] }

// alloc returns a zero record.
func (a *arena[T, P]) alloc() (uint32, *T) {
	a.used++
	if ref := a.free; ref != 0 {
		r := a.at(ref)
		a.free = *P(r).link()
		*P(r).link() = 0
		return ref, r
	}
	a.top++
	if int(a.top>>pageBits) == len(a.pages) {
		a.pages = append(a.pages, (*[pageSize]T)(slab.Make[T](pageSize)))
	}
	return a.top, a.at(a.top)
}

func (a *arena[T, P]) release(ref uint32) {
	r := a.at(ref)
	*r = *new(T)
	*P(r).link() = a.free
	a.free = ref
	a.used--
}

// beside keeps what belongs to records of an arena and is seldom looked at, by the same numbers.
type beside []*[pageSize]siblings

func (b beside) at(ref uint32) *siblings { return &b[ref>>pageBits][ref&(pageSize-1)] }

// reach makes room for a number that the arena has just given out.
func (b *beside) reach(ref uint32) {
	for int(ref>>pageBits) >= len(*b) {
		*b = append(*b, (*[pageSize]siblings)(slab.Make[siblings](pageSize)))
	}
}
