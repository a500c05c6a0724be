// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestIndex adds and removes at random, beside a map, with digests that collide seldom, often and always.
func TestIndex(t *testing.T) {
	for _, c := range []struct {
		size int
		keep uint32
	}{{1, ^uint32(0)}, {2, ^uint32(0)}, {50, ^uint32(0)}, {50, 0xf000000f}, {50, 0xf0000000}, {50, 0}, {3000, ^uint32(0)}} {
		t.Run(fmt.Sprintf("%d/%#x", c.size, c.keep), func(t *testing.T) {
			random := rand.New(rand.NewPCG(uint64(c.size), uint64(c.keep)))
			digests := make([]uint32, c.size+1) // by number
			for i := range digests {
				digests[i] = random.Uint32() & c.keep
			}
			var x index
			if err := x.reserve(c.size); err != nil {
				t.Fatal(err)
			}
			in := make(map[uint32]bool)
			for range 20 * c.size {
				ref := 1 + random.Uint32N(uint32(c.size))
				if in[ref] {
					x.remove(digests[ref], ref)
				} else {
					x.add(digests[ref], ref)
				}
				in[ref] = !in[ref]
				probe := 1 + random.Uint32N(uint32(c.size))
				if got := slices.Contains(candidates(&x, digests[probe]), probe); got != in[probe] {
					t.Fatalf("%d: found %v, want %v", probe, got, in[probe])
				}
			}
			for ref := range in {
				if in[ref] {
					x.remove(digests[ref], ref)
				}
			}
			for i, b := range x.buckets {
				if b != (bucket{}) {
					t.Errorf("bucket %d is %+v after everything was removed", i, b)
				}
			}
		})
	}
}

func candidates(x *index, digest uint32) []uint32 { return slices.Collect(x.candidates(digest)) }
