// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHaving compares the places found at once with those found one after another.
func TestHaving(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		var b tags
		for i := range b {
			b[i] = []uint8{0, 1, 0x7f, 0x80, 0x81, 0xfe, 0xff}[random.IntN(7)]
		}
		for _, tag := range []uint8{0, 1, 0x7f, 0x80, 0xff} {
			var got, want []int
			for m := b.having(tag); m != 0; m &= m - 1 {
				got = append(got, first(m))
			}
			for i, has := range b {
				if has == tag {
					want = append(want, i)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("%x: places %v have %#x, want %v", b, got, tag, want)
			}
		}
	}
}
