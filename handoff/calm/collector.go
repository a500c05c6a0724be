// SPDX-License-Identifier: Apache-2.0

package calm

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

const (
	// collectAfter is how much a process may allocate, in bytes, before its memory is collected. Go's own rule, as much again as is in use
	// but 4 MiB at least, has an agent of a few MiB collect every few dozen moves; a connection that is frozen just then waits about 2 ms
	// longer.
	collectAfter = 64 << 20
	// smallestHeap is how large a heap becomes before its first collection with the standard target, in bytes; any other target scales it.
	smallestHeap = 4 << 20
	// standardPercent and largestPercent bound the collector's target (GOGC). With the largest, smallestHeap is collectAfter.
	standardPercent = 100
	largestPercent  = standardPercent * collectAfter / smallestHeap
)

// scannedMetrics are what the last collection has looked at, in bytes: the target is a percentage of their sum.
func scannedMetrics() []runtimemetrics.Sample {
	return []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
}

// CollectRarely gives this process's heap room to grow by 64 MiB between two collections, in the place of the 4 MiB that Go gives to a
// small heap, until ctx ends. A large heap, while connections with full queues move, is collected as ever. An operator who has set GOGC
// decides instead.
func CollectRarely(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	c := collector{percent: largestPercent, scanned: scannedMetrics()}
	before := debug.SetGCPercent(c.percent)
	defer debug.SetGCPercent(before)
	for {
		next := collection() // before follow looks at the one before
		c.follow()
		select {
		case <-next:
		case <-ctx.Done():
			return
		}
	}
}

// mark is what the collector finds unused. It holds a pointer, or it could share its memory with others.
type mark struct{ _ *mark }

// collection returns a channel that is closed after the next collection. What is in use is counted by collections alone, so in between, and
// in a process at rest, there is nothing to look at.
func collection() <-chan struct{} {
	over := make(chan struct{})
	runtime.AddCleanup(new(mark), func(over chan struct{}) { close(over) }, over)
	return over
}

// collector knows the target that it has set. One goroutine uses it.
type collector struct {
	percent int
	scanned []runtimemetrics.Sample
}

// follow adapts the target to what is in use. Setting it stops the process for a moment, so a small difference is left alone.
func (c *collector) follow() {
	runtimemetrics.Read(c.scanned)
	var inUse uint64
	for _, s := range c.scanned {
		if s.Value.Kind() == runtimemetrics.KindUint64 {
			inUse += s.Value.Uint64()
		}
	}
	if want := growth(inUse); 4*want > 5*c.percent || 5*want < 4*c.percent {
		debug.SetGCPercent(want)
		c.percent = want
	}
}

// growth returns the target, in percent of what is in use, that lets a heap grow by collectAfter, or to twice its size if that is more.
func growth(inUse uint64) int {
	if inUse == 0 {
		return largestPercent
	}
	return int(min(max(100*collectAfter/inUse, standardPercent), largestPercent))
}
