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
	for _, n := range []int{0, 1, 1000, 1 << 17, 1<<20 + 1} {
		s, err := Make[record](n)
		if err != nil {
			t.Fatal(err)
		}
		if len(s) != n || cap(s) != n {
			t.Errorf("%d records: length %d, room for %d", n, len(s), cap(s))
		}
		for i := range s {
			if s[i] != (record{}) {
				t.Fatalf("record %d of %d is not zero", i, n)
			}
			s[i].A = uint64(i)
		}
		if err := Free(s); err != nil {
			t.Errorf("%d records: %v", n, err)
		}
	}
	if err := Free[record](nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
}

func ExampleMake() {
	counters, err := Make[uint64](1 << 20)
	if err != nil {
		fmt.Println(err)
		return
	}
	counters[7]++
	fmt.Println(len(counters), counters[7])
	fmt.Println(Free(counters))
	// Output:
	// 1048576 1
	// <nil>
}
