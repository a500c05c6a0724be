// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"

	"github.com/rehome-net/rehome/dispatcher/session/slab"
)

// rack keeps flows where their digests say. A digest has a home among the shelves, which have fifteen places each; what has no room there is on the next
// shelf that has. So a search needs a few tags, which all together are small enough for the CPU's cache, and then the flow itself: of a million
// flows that is one line from memory and not two, as it would be with an index that has the flows' numbers.
type rack struct {
	shelves []shelf
	flows   []flow     // by place: fifteen for each shelf
	beside  []siblings // by place
}

// shelf says what is at fifteen places.
type shelf struct {
	tags tags
	// passed counts the flows that are elsewhere because there was no room here, up to manyPassed, where it stays. A search goes on only for these,
	// so nothing needs to move when a flow goes.
	passed uint8
}

// manyPassed is seen with digests that are the same, and nobody can make them. The price is that searches go on in vain.
const manyPassed = ^uint8(0)

// siblings are a flow's neighbours in its session's list.
type siblings struct{ next, prev uint32 }

// reserve makes an empty rack.
func (r *rack) reserve(shelves int) error {
	var first, second, third error
	r.shelves, first = slab.Make[shelf](shelves)
	r.flows, second = slab.Make[flow](shelves * perLine)
	r.beside, third = slab.Make[siblings](shelves * perLine)
	return errors.Join(first, second, third)
}

// free gives the memory back.
func (r *rack) free() error {
	err := errors.Join(slab.Free(r.shelves), slab.Free(r.flows), slab.Free(r.beside))
	*r = rack{}
	return err
}

// after returns the shelf behind p.
func (r *rack) after(p int) int {
	if p++; p < len(r.shelves) {
		return p
	}
	return 0
}

// find returns the flow with exactly that tuple, and its place; nil if there is none.
func (r *rack) find(digest uint32, want *tuple) (*flow, int) {
	p := homeOf(digest, len(r.shelves))
	for range r.shelves { // each may have been passed, by flows that came and went
		s := &r.shelves[p]
		for m := s.tags.having(tagOf(digest)); m != 0; m &= m - 1 {
			place := p*perLine + first(m)
			if f := &r.flows[place]; f.is(want) {
				return f, place
			}
		}
		if s.passed == 0 {
			break
		}
		p = r.after(p)
	}
	return nil, 0
}

// take finds a place for a flow. There must be one.
func (r *rack) take(digest uint32) int {
	for p := homeOf(digest, len(r.shelves)); ; p = r.after(p) {
		s := &r.shelves[p]
		if m := s.tags.having(0); m != 0 {
			s.tags[first(m)] = tagOf(digest)
			return p*perLine + first(m)
		}
		if s.passed < manyPassed {
			s.passed++
		}
	}
}

// clear empties the place of a flow that has this digest.
func (r *rack) clear(digest uint32, place int) {
	for p := homeOf(digest, len(r.shelves)); p != place/perLine; p = r.after(p) {
		if s := &r.shelves[p]; s.passed < manyPassed {
			s.passed--
		}
	}
	r.shelves[place/perLine].tags[place%perLine] = 0
	r.flows[place], r.beside[place] = flow{}, siblings{}
}

// next returns the first place from a place on that is taken, and looks at no more than n shelves; if there is none on these, it returns where to go on,
// which at the end is behind the last place.
func (r *rack) next(place, n int) (_ int, taken bool) {
	for p := place / perLine; p < len(r.shelves); p++ {
		if n--; n < 0 {
			return p * perLine, false
		}
		for i := place % perLine; i < perLine; i++ {
			if r.shelves[p].tags[i] != 0 {
				return p*perLine + i, true
			}
		}
		place = 0
	}
	return len(r.flows), false
}
