// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// racked is a flow that can be told from others.
func racked(i uint32) flow {
	return flow{from: address{0, mapped<<32 | uint64(i)}, ends: ends{1, 2, protocolUDP}, session: i}
}

// TestRack takes places and clears them at random, beside a list, with digests that collide seldom, often and always.
func TestRack(t *testing.T) {
	for _, c := range []struct {
		size int
		keep uint32
	}{{1, ^uint32(0)}, {2, ^uint32(0)}, {20, 0}, {50, ^uint32(0)}, {50, 0xf000000f}, {50, 0xf0000000}, {50, 0}, {600, 0}, {3000, ^uint32(0)}} {
		t.Run(fmt.Sprintf("%d/%#x", c.size, c.keep), func(t *testing.T) {
			random := rand.New(rand.NewPCG(uint64(c.size), uint64(c.keep)))
			digests, places := make([]uint32, c.size), make([]int, c.size)
			for i := range digests {
				digests[i], places[i] = random.Uint32()&c.keep, -1
			}
			var r rack
			if err := r.reserve(c.size/fullLine + 1); err != nil {
				t.Fatal(err)
			}
			toggle := func(i int) {
				if places[i] >= 0 {
					r.clear(digests[i], places[i])
					places[i] = -1
					return
				}
				places[i] = r.take(digests[i])
				if r.flows[places[i]] != (flow{}) {
					t.Fatalf("%d is given the place %d, where %+v is", i, places[i], r.flows[places[i]])
				}
				r.flows[places[i]] = racked(uint32(i))
			}
			for range 20 * c.size {
				toggle(random.IntN(c.size))
				i := random.IntN(c.size)
				probe := racked(uint32(i))
				tuple := probe.tuple()
				f, place := r.find(digests[i], &tuple)
				if found := f != nil; found != (places[i] >= 0) || found && (place != places[i] || *f != probe) {
					t.Fatalf("%d: found %v at %d, want it at %d", i, f, place, places[i])
				}
			}
			for i := range places {
				if places[i] >= 0 {
					toggle(i)
				}
			}
			for i, s := range r.shelves {
				if s.tags != (tags{}) || s.passed != 0 && s.passed != manyPassed {
					t.Errorf("shelf %d is %+v after everything was removed", i, s)
				}
				if s.passed == manyPassed && c.size < int(manyPassed) {
					t.Errorf("shelf %d was passed by %d at most, and has lost count", i, c.size)
				}
			}
			freed(t, &r)
		})
	}
}

func freed(t *testing.T, s interface{ free() error }) {
	t.Helper()
	if err := s.free(); err != nil {
		t.Error(err)
	}
}

// TestAllPassed holds that a search ends although flows have passed every shelf: each shelf has been full once, and never all of them were.
func TestAllPassed(t *testing.T) {
	const first, second = 0, 1 << 31
	var r rack
	var x index
	if err := r.reserve(2); err != nil {
		t.Fatal(err)
	}
	if err := x.reserve(2*fullLine - 1); err != nil {
		t.Fatal(err)
	}
	n := uint32(0)
	take := func(digest uint32) (place int, ref uint32) {
		n++
		place = r.take(digest)
		r.flows[place] = racked(n)
		x.add(digest, n)
		return place, n
	}
	// Fifteen are at home on the first shelf and one is passed on; then the same at the second, to which the first has room again.
	var places []int
	var refs []uint32
	for range perLine {
		place, ref := take(first)
		places, refs = append(places, place), append(refs, ref)
	}
	take(first)
	for i := range perLine - 1 {
		r.clear(first, places[i])
		x.remove(first, refs[i])
	}
	for range perLine {
		take(second)
	}
	if len(r.shelves) != 2 || r.shelves[0].passed == 0 || r.shelves[1].passed == 0 || x.buckets[0].passed == 0 || x.buckets[1].passed == 0 {
		t.Fatalf("not all are passed, the test tests nothing: %+v", r.shelves)
	}
	unknown := racked(0)
	tuple := unknown.tuple()
	for _, digest := range []uint32{first, second} {
		if f, place := r.find(digest, &tuple); f != nil {
			t.Errorf("%+v is found at %d", f, place)
		}
		if got := candidates(&x, digest); len(got) != perLine+2 {
			t.Errorf("the index has %v", got)
		}
	}
}

// TestRackNext meets the flows of racks of several sizes, whatever it looks at at once.
func TestRackNext(t *testing.T) {
	for _, shelves := range []int{1, 2, 7} {
		for few := 1; few < 9; few++ {
			var r rack
			if err := r.reserve(shelves); err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(uint64(shelves), uint64(few)))
			want := make(map[int]bool)
			for range 4 * shelves {
				want[r.take(random.Uint32())] = true
			}
			got, steps := 0, 0
			for place := 0; place < len(r.flows); steps++ {
				at, taken := r.next(place, few)
				if at < place || taken && !want[at] {
					t.Fatalf("after %d comes %d, taken %v", place, at, taken)
				}
				if place = at; taken {
					place, got = at+1, got+1
				}
			}
			if got != len(want) || steps > len(want)+shelves/few+1 {
				t.Errorf("%d shelves by %d: %d of %d met in %d steps", shelves, few, got, len(want), steps)
			}
		}
	}
}
