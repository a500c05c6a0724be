// SPDX-License-Identifier: Apache-2.0

package session

import "errors"

// racks has the flows: in one rack, and while that is being replaced by one with twice as many shelves, in two. So a table takes as much memory as its
// flows need, although they are all over their rack. Table.grow moves them on shelf by shelf; see there.
//
// A flow's number is its place, with its rack's level above. No number is 0. A flow that is moved gets another number.
type racks struct {
	now, before rack
	level       uint32 // of now; before has the level below
	moved       int    // flows whose home in before is below this one have been moved
	larger      []rack // for later levels
	used        int    // flows
	lost        error  // of memory that could not be given back
}

const (
	levelBits = 5
	placeBits = 32 - levelBits
	placeMask = 1<<placeBits - 1

	// fewShelves is how many the first rack has at least, when there are to be more at all. Below that all is small.
	fewShelves = 512
	// crowdedLine is for how many flows to a shelf the next rack is begun. It is complete when there are as many flows more as there were
	// shelves, so there are never more than fullLine.
	crowdedLine = fullLine - 1
)

// reserve makes room for n flows. Of memory there is only as much as is in use.
func (x *racks) reserve(n int) error { return x.reserveFrom(fewShelves, n) }

// reserveFrom takes the first rack's size.
func (x *racks) reserveFrom(few, n int) error {
	shelves, levels := n/fullLine+1, 1
	for shelves>>levels >= few {
		levels++
	}
	all := make([]rack, levels)
	var err error
	for i := range all {
		err = errors.Join(err, all[i].reserve((shelves-1)>>(levels-1-i)+1))
	}
	x.now, x.larger, x.level = all[0], all[1:], 1
	return err
}

// free gives the memory back.
func (x *racks) free() error {
	err := errors.Join(x.lost, x.now.free(), x.before.free())
	for i := range x.larger {
		err = errors.Join(err, x.larger[i].free())
	}
	*x = racks{}
	return err
}

// moving reports whether there are two racks.
func (x *racks) moving() bool { return len(x.before.shelves) > 0 }

// begin takes the next rack, if it is time.
func (x *racks) begin() {
	if x.moving() || len(x.larger) == 0 || x.used < crowdedLine*len(x.now.shelves) {
		return
	}
	x.before, x.now, x.larger = x.now, x.larger[0], x.larger[1:]
	x.level++
	x.moved = 0
}

// movedOn is called when all flows have been moved whose home was the next shelf.
func (x *racks) movedOn() {
	if x.moved++; x.moved == len(x.before.shelves) {
		x.lost = errors.Join(x.lost, x.before.free())
	}
}

// of returns the rack of a digest, and its level.
func (x *racks) of(digest uint32) (*rack, uint32) {
	if x.moving() && homeOf(digest, len(x.before.shelves)) >= x.moved {
		return &x.before, x.level - 1
	}
	return &x.now, x.level
}

// in returns the rack of a flow, and its place there.
func (x *racks) in(ref uint32) (*rack, int) {
	if ref>>placeBits == x.level {
		return &x.now, int(ref & placeMask)
	}
	return &x.before, int(ref & placeMask)
}

func (x *racks) at(ref uint32) *flow {
	r, place := x.in(ref)
	return &r.flows[place]
}

func (x *racks) beside(ref uint32) *siblings {
	r, place := x.in(ref)
	return &r.beside[place]
}

// take finds a place for a flow. There must be one.
func (x *racks) take(digest uint32) uint32 {
	r, level := x.of(digest)
	x.used++
	return number(level, r.take(digest))
}

// clear empties the place of a flow that has this digest.
func (x *racks) clear(digest, ref uint32) {
	r, place := x.in(ref)
	r.clear(digest, place)
	x.used--
}

// next returns the first flow whose number is this one or comes later. It does not look far: when it has found none yet, it returns where to go on,
// 0 at the end. Who goes on from 0 to 0 meets each flow that stays, once or, if it is moved meanwhile, twice.
func (x *racks) next(ref uint32) (_ uint32, found bool) {
	const few = 256 // shelves: 64 lines of the CPU's cache, one after another
	lowest := x.level
	if x.moving() {
		lowest--
	}
	ref = max(ref, number(lowest, 0))
	r, place := x.in(ref)
	level := ref >> placeBits
	place, found = r.next(place, few)
	switch {
	case place < len(r.flows):
		return number(level, place), found
	case level < x.level:
		return number(x.level, 0), false
	}
	return 0, false
}

func number(level uint32, place int) uint32 { return level<<placeBits | uint32(place) }
