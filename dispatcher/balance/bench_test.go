// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// TestChooseAllocates holds that a choice allocates nothing.
func TestChooseAllocates(t *testing.T) {
	for _, kind := range kinds() {
		p := policyOf(t, Config{Kind: kind, SlowStart: time.Minute})
		backends := backendsOf(64, 1, 2)
		p.Choose(epoch(), 0, backends)
		var key uint64
		if n := testing.AllocsPerRun(1000, func() { key++; p.Choose(epoch(), key, backends) }); n != 0 {
			t.Errorf("%s: %v allocations per choice", kind, n)
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, kind := range kinds() {
		for _, n := range []int{3, 64, 1000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				b.ReportAllocs()
				p := policyOf(b, Config{Kind: kind})
				backends := backendsOf(n, 1, 2, 3)
				var key uint64
				for b.Loop() {
					key++
					p.Choose(epoch(), mix(key), backends)
				}
			})
		}
	}
}

// BenchmarkChooseParallel is about workers that share a policy.
func BenchmarkChooseParallel(b *testing.B) {
	for _, kind := range kinds() {
		b.Run(fmt.Sprintf("%s/64", kind), func(b *testing.B) {
			b.ReportAllocs()
			p := policyOf(b, Config{Kind: kind})
			var workers atomic.Uint64
			b.RunParallel(func(pb *testing.PB) {
				backends := backendsOf(64, 1, 2, 3)
				key := workers.Add(1) << 32
				for pb.Next() {
					key++
					p.Choose(epoch(), mix(key), backends)
				}
			})
		})
	}
}
