// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// These benchmarks run whole scenes; b.N plays no part, and what counts is what they report.

func BenchmarkRequestResponseGap(b *testing.B) {
	for _, think := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond} {
		b.Run("think="+think.String(), func(b *testing.B) { requestResponseGap(b, think) })
	}
}

func requestResponseGap(b *testing.B, think time.Duration) {
	r, err := scenario.Gaps(testContext(b, 5*time.Minute), scenario.GapsConfig{
		Command: binary(b), Lab: labName("gaps"), Migrations: 1000, Think: think,
	})
	if err != nil {
		b.Fatal(err)
	}
	report(b, map[string]float64{
		"gap-us-median": float64(r.Gap.Median), "gap-us-p99": float64(r.Gap.P99), "gap-us-max": float64(r.Gap.Max),
		"idle-us-median": float64(r.Idle.Median), "idle-us-p99": float64(r.Idle.P99),
		"freeze-us-median": float64(r.Freeze.Median), "freeze-us-p99": float64(r.Freeze.P99),
		"retransmitted": float64(r.Retransmitted),
	})
}

func BenchmarkStreamGap(b *testing.B) {
	r, err := scenario.Throughput(testContext(b, 5*time.Minute), scenario.ThroughputConfig{
		Command: binary(b), Lab: labName("stream"), RTT: -1, Moves: 20,
	})
	if err != nil {
		b.Fatal(err)
	}
	report(b, map[string]float64{
		"gap-ms-without": median(r.GapBeforeMillis), "gap-ms-with": median(r.GapAfterMillis),
		"gap-ms-without-max": slices.Max(r.GapBeforeMillis), "gap-ms-with-max": slices.Max(r.GapAfterMillis),
		"Mbit/s-before": median(r.Before), "Mbit/s-after": median(r.After),
	})
}

func BenchmarkThroughputAfterMove(b *testing.B) {
	for _, tt := range []struct {
		name   string
		noSeed bool
	}{{"seeded", false}, {"unseeded", true}} {
		b.Run(tt.name, func(b *testing.B) {
			r, err := scenario.Throughput(testContext(b, 5*time.Minute), scenario.ThroughputConfig{
				Command: binary(b), Lab: labName("rate"), Moves: 5, NoSeed: tt.noSeed,
			})
			if err != nil {
				b.Fatal(err)
			}
			var share []float64
			for i := range r.Before {
				share = append(share, 100*r.After[i]/r.Before[i])
			}
			report(b, map[string]float64{
				"Mbit/s-before": median(r.Before), "Mbit/s-after": median(r.After), "percent": median(share), "percent-min": slices.Min(share),
			})
		})
	}
}

func BenchmarkDrain(b *testing.B) {
	r, err := scenario.Drain(testContext(b, 5*time.Minute), scenario.DrainConfig{Command: binary(b), Lab: labName("drain"), Connections: 10000})
	if err != nil {
		b.Fatal(err)
	}
	if !r.OK {
		b.Fatal(r.Problems)
	}
	report(b, map[string]float64{
		"drain-ms": r.DrainMillis, "freeze-us-median": float64(r.FreezeMicros.Median), "freeze-us-p99": float64(r.FreezeMicros.P99),
		"agent-B/conn": r.AgentBytesPerConnection,
	})
}

func report(b *testing.B, metrics map[string]float64) {
	b.ReportMetric(0, "ns/op")
	for name, v := range metrics {
		b.ReportMetric(v, name)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// meanError is the standard error of the mean of at least two values.
func meanError(v []float64) float64 {
	m, sum := mean(v), 0.0
	for _, x := range v {
		sum += (x - m) * (x - m)
	}
	n := float64(len(v))
	return math.Sqrt(sum / (n - 1) / n)
}
