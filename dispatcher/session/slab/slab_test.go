// SPDX-License-Identifier: Apache-2.0

package slab

import (
	"fmt"
	"testing"
)

type record struct {
	A uint64
	B [3]byte
}

func TestMake(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 1 << 20} {
		s := Make[record](n)
		if len(s) != n || cap(s) != n {
			t.Errorf("%d records: length %d, room for %d", n, len(s), cap(s))
		}
		for i := range s {
			if s[i] != (record{}) {
				t.Fatalf("record %d of %d is not zero", i, n)
			}
			s[i].A = uint64(i)
		}
	}
	if s := Make[struct{}](10); len(s) != 10 {
		t.Errorf("%d records of no size, want 10", len(s))
	}
}

func ExampleMake() {
	counters := Make[uint64](1 << 20)
	counters[7]++
	fmt.Println(len(counters), counters[7])
	// Output: 1048576 1
}

// BenchmarkMake is what an arena pays when it grows.
func BenchmarkMake(b *testing.B) {
	for b.Loop() {
		s := Make[[64]byte](1 << 15)
		s[0][0] = 1
	}
}
