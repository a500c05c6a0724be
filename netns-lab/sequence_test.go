// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSequenceCountsNumbersSeenBefore(t *testing.T) {
	type add struct {
		seq, n uint32
		again  int64
	}
	for _, test := range []struct {
		name string
		adds []add
		left int // ranges
	}{
		{"in order", []add{{100, 10, 0}, {110, 10, 0}, {120, 1, 0}}, 1},
		{"the same twice", []add{{100, 10, 0}, {100, 10, 10}}, 1},
		{"overlap at the end", []add{{100, 10, 0}, {105, 10, 5}}, 1},
		{"overlap at the front", []add{{100, 10, 0}, {95, 10, 5}}, 1},
		{"hole filled", []add{{100, 10, 0}, {120, 10, 0}, {110, 10, 0}}, 1},
		{"hole left", []add{{100, 10, 0}, {120, 10, 0}}, 2},
		{"over two ranges", []add{{100, 10, 0}, {120, 10, 0}, {95, 40, 20}}, 1},
		{"late, before the first", []add{{100, 10, 0}, {80, 10, 0}}, 2},
		{"across the wrap", []add{{0xfffffff0, 0x10, 0}, {0, 0x10, 0}, {0xfffffff8, 0x10, 0x10}}, 1},
		{"hole across the wrap", []add{{0xfffffff0, 8, 0}, {8, 8, 0}, {0xfffffff8, 0x10, 0}}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var q sequence
			for i, a := range test.adds {
				if got := q.add(a.seq, a.n); got != a.again {
					t.Errorf("add %d (%d, %d): %d seen before, want %d", i, a.seq, a.n, got, a.again)
				}
			}
			if len(q.ranges) != test.left {
				t.Errorf("%d ranges left, want %d: %v", len(q.ranges), test.left, q.ranges)
			}
		})
	}
}

// Many gigabytes in order take one range, and numbers from several turns ago do not count as seen.
func TestSequenceGoesRoundManyTimes(t *testing.T) {
	var q sequence
	const step = 1 << 20
	for seq, i := uint32(7), 0; i < 10*4096; i++ {
		if again := q.add(seq, step); again != 0 {
			t.Fatalf("megabyte %d: %d numbers seen before", i, again)
		}
		seq += step
	}
	if len(q.ranges) != 1 {
		t.Errorf("%d ranges", len(q.ranges))
	}
}

// The set agrees with one bit per number.
func TestSequenceAgreesWithABitmap(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var (
			q    sequence
			bits [512]bool
			base = r.Uint32()
		)
		for range 60 {
			from, n := r.IntN(480), 1+r.IntN(32)
			var want int64
			for i := from; i < from+n; i++ {
				if bits[i] {
					want++
				}
				bits[i] = true
			}
			if got := q.add(base+uint32(from), uint32(n)); got != want {
				t.Fatalf("base %#x, add (%d, %d): %d, want %d", base, from, n, got, want)
			}
		}
		var covered, want []int
		for i, b := range bits {
			if b {
				want = append(want, i)
			}
			if q.covers(base + uint32(i)) {
				covered = append(covered, i)
			}
		}
		if d := cmp.Diff(want, covered); d != "" {
			t.Fatalf("covered:\n%s", d)
		}
	}
}
