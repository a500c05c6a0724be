// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGrowth(t *testing.T) {
	for _, tt := range []struct {
		name string
		live uint64
		want int
	}{
		{"nothing is known yet", 0, largestPercent},
		{"an empty agent", 100 << 10, largestPercent},
		{"an agent at rest", 2 << 20, 3200},
		{"some queues are here", 32 << 20, 200},
		{"as large as the room for growth", 64 << 20, standardPercent},
		{"larger", 1 << 30, standardPercent},
		{"beyond reason", math.MaxUint64, standardPercent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := growth(tt.live); got != tt.want {
				t.Errorf("growth(%d) = %d, want %d", tt.live, got, tt.want)
			}
		})
	}
}

// percent reads the process's target.
func percent() int {
	p := debug.SetGCPercent(standardPercent)
	debug.SetGCPercent(p)
	return p
}

func TestCollectorFollowsTheHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	before := percent()
	c := newCollector()
	if got := percent(); got != largestPercent {
		t.Errorf("at first the target is %d, want %d", got, largestPercent)
	}
	large := make([]byte, 256<<20)
	runtime.GC()
	c.tick()
	if got := percent(); got != standardPercent {
		t.Errorf("with 256 MiB in use the target is %d, want %d", got, standardPercent)
	}
	runtime.KeepAlive(large)
	large = nil
	_ = large
	runtime.GC()
	c.tick()
	if got := percent(); got <= 2*standardPercent {
		t.Errorf("with a small heap the target is %d again, want more", got)
	}
	c.close()
	if got := percent(); got != before {
		t.Errorf("afterwards the target is %d, was %d", got, before)
	}
}

func TestCollectorIsTheOperators(t *testing.T) {
	t.Setenv("GOGC", "50")
	before := percent()
	c := newCollector()
	c.tick()
	c.close()
	if got := percent(); got != before {
		t.Errorf("the target is %d although GOGC is set, was %d", got, before)
	}
}
