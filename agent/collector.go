// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

const (
	// collectAfter is how much an agent may allocate, in bytes, before its memory is collected. Go's own rule, as much again as is in use but
	// 4 MiB at least, has an agent of a few MiB collect every few dozen moves; a connection that is frozen just then waits about 2 ms longer.
	collectAfter = 64 << 20
	// standardPercent and largestPercent bound the collector's target (GOGC).
	standardPercent = 100
	largestPercent  = 6400
)

// liveMetric is the heap that the last collection found in use, in bytes.
const liveMetric = "/gc/heap/live:bytes"

// collector keeps the heap's room for growth at collectAfter at least, in the place of the 4 MiB that Go gives to a small heap. A large heap, while
// connections with full queues move, is collected as ever. The zero value leaves the process alone. One goroutine uses it.
type collector struct {
	percent int // what it has set
	before  int // what there was
	sample  [1]runtimemetrics.Sample
}

// newCollector takes the process's collector over, unless the operator has set GOGC.
func newCollector() collector {
	c := collector{}
	if os.Getenv("GOGC") != "" {
		return c
	}
	c.sample[0].Name = liveMetric
	c.percent = growth(0)
	c.before = debug.SetGCPercent(c.percent)
	return c
}

// tick follows the heap. Setting the target stops the process for a moment, so a small difference is left alone.
func (c *collector) tick() {
	if c.percent == 0 {
		return
	}
	runtimemetrics.Read(c.sample[:])
	if c.sample[0].Value.Kind() != runtimemetrics.KindUint64 {
		return
	}
	if want := growth(c.sample[0].Value.Uint64()); want > 2*c.percent || 2*want < c.percent {
		debug.SetGCPercent(want)
		c.percent = want
	}
}

// close gives the collector back as it was.
func (c *collector) close() {
	if c.percent != 0 {
		debug.SetGCPercent(c.before)
	}
}

// growth returns the target, in percent of what is in use, that lets a heap grow by collectAfter, or to twice its size if that is more.
func growth(live uint64) int {
	if live == 0 {
		return largestPercent
	}
	return int(min(max(100*collectAfter/live, standardPercent), largestPercent))
}
