// SPDX-License-Identifier: Apache-2.0

package session

import "github.com/rehome-net/rehome/dispatcher/session/slab"

// arena keeps records of one kind, which refer to one another by number. Records never move, have no pointers, and lie in memory of their
// own (package slab), of which there is as much as is in use. Number 0 is no record. What is freed is used again, last first.
type arena[T any, P record[T]] struct {
	records []T
	spare   uint32 // chained by link
	top     uint32 // the highest number ever in use
	used    int
}

// record is a type with room for the chain of free ones.
type record[T any] interface {
	*T
	link() *uint32
}

// reserve makes room for n records, once.
func (a *arena[T, P]) reserve(n int) (err error) {
	a.records, err = slab.Make[T](n + 1)
	return err
}

// free gives the memory back.
func (a *arena[T, P]) free() error { return slab.Free(a.records) }

func (a *arena[T, P]) at(ref uint32) *T { return &a.records[ref] }

// alloc returns a zero record. There must be room.
func (a *arena[T, P]) alloc() (uint32, *T) {
	a.used++
	if ref := a.spare; ref != 0 {
		r := a.at(ref)
		a.spare = *P(r).link()
		*P(r).link() = 0
		return ref, r
	}
	a.top++
	return a.top, a.at(a.top)
}

func (a *arena[T, P]) release(ref uint32) {
	r := a.at(ref)
	*r = *new(T)
	*P(r).link() = a.spare
	a.spare = ref
	a.used--
}
