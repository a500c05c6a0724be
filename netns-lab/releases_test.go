// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestReleasesComeInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var (
		heap releases
		all  []release
	)
	for i := range 1000 {
		// Few distinct times, so that ties are common.
		at := time.Duration(r.IntN(50))
		frame := []byte{byte(i), byte(i >> 8)}
		heap.push(at, frame, false)
		all = append(all, release{at: at, order: uint64(i), frame: frame})
	}
	slices.SortStableFunc(all, func(a, b release) int { return int(a.at - b.at) })
	for i, want := range all {
		at, ok := heap.next()
		if !ok || at != want.at {
			t.Fatalf("release %d: next is %v, %t, want %v", i, at, ok, want.at)
		}
		if got := heap.pop(); got.order != want.order {
			t.Fatalf("release %d: packet %d at %v, want packet %d at %v", i, got.order, got.at, want.order, want.at)
		}
	}
	if _, ok := heap.next(); ok || heap.len() != 0 {
		t.Error("not empty")
	}
}

func BenchmarkReleases(b *testing.B) {
	var heap releases
	r := rand.New(rand.NewPCG(1, 2))
	var now time.Duration
	for range 1000 { // what waits at 1 Gb/s and 10 ms
		heap.push(now, nil, false)
	}
	b.ReportAllocs()
	for b.Loop() {
		now += 12 * time.Microsecond
		heap.push(now+time.Duration(r.IntN(1e6)), nil, false)
		heap.pop()
	}
}
