// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// movers are rehome and its peer, in the same lab.
func movers(b *testing.B, bed *scenario.ProcessBed, cfg scenario.CRIUAloneConfig) []scenario.ProcessMover {
	return []scenario.ProcessMover{scenario.NewMigrator(bed), criuAlone(b, bed, cfg)}
}

// Each server moves benchmarkMoves times, in benchmarkRounds: the movers take turns, so that what else the machine does meets them alike.
const (
	benchmarkMoves  = 20
	benchmarkRounds = 5
)

func BenchmarkProcessPause(b *testing.B) {
	bed := processBed(b, "pause", true)
	for _, n := range []int{1, 100} {
		var sums [2]scenario.Pauses
		for range benchmarkRounds {
			for i, m := range movers(b, bed, scenario.CRIUAloneConfig{}) {
				p, err := scenario.MeasurePauses(testContext(b, 5*time.Minute), bed, m, pauses(b, n, benchmarkMoves/benchmarkRounds))
				if err != nil {
					b.Fatal(err)
				}
				sums[i].Add(p)
			}
		}
		for _, p := range sums {
			b.Run(fmt.Sprintf("%d/%s", n, p.Mover), func(b *testing.B) { reportPauses(b, &p) })
		}
	}
}

func reportPauses(b *testing.B, p *scenario.Pauses) {
	report(b, map[string]float64{
		"pause-ms-median": p.PauseMillis.Median, "pause-ms-max": p.PauseMillis.Max, "worst-ms-median": p.WorstMillis.Median, "worst-ms-min": p.WorstMillis.Min,
		"idle-ms-median": p.IdleMillis.Median, "freeze-ms-median": p.FreezeMillis.Median, "move-ms-median": p.MoveMillis.Median,
		"rto": float64(p.RetransmissionTimeouts), "sent-again": float64(p.Retransmitted), "errors": float64(p.ClientErrors),
		"image-B": float64(p.ImageBytes),
	})
}

func BenchmarkProcessArrivals(b *testing.B) {
	bed := processBed(b, "arrive", true)
	for _, m := range movers(b, bed, scenario.CRIUAloneConfig{SkipInFlight: true}) {
		b.Run(m.Name(), func(b *testing.B) {
			a, err := scenario.MeasureArrivals(testContext(b, 5*time.Minute), bed, m, scenario.ArrivalsConfig{Server: cEcho(b), Moves: benchmarkMoves})
			if err != nil {
				b.Fatal(err)
			}
			b.Log(a.Errors)
			report(b, map[string]float64{
				"moves": float64(a.Moves), "failed-moves": float64(a.FailedMoves), "new": float64(a.New), "refused": float64(a.Refused),
				"reset": float64(a.Reset), "failed": float64(a.Failed), "connect-ms-p99": a.ConnectMillis.P99, "connect-ms-max": a.ConnectMillis.Max,
				"kept-errors": float64(a.Kept.ClientErrors), "kept-pause-ms-median": a.Kept.PauseMillis.Median,
			})
		})
	}
}

func BenchmarkProcessHops(b *testing.B) {
	bed := processBed(b, "stream", true)
	for _, m := range movers(b, bed, scenario.CRIUAloneConfig{}) {
		b.Run(m.Name(), func(b *testing.B) {
			h, err := scenario.MeasureHops(testContext(b, 5*time.Minute), bed, m, scenario.HopsConfig{Server: cEcho(b)})
			if err != nil {
				b.Fatal(err)
			}
			if !h.SHA256Equal {
				b.Errorf("the stream of %d bytes differs", h.Bytes)
			}
			report(b, map[string]float64{
				"moves": float64(h.Moves), "bytes": float64(h.Bytes), "gap-ms-max": h.LongestGapMillis, "Mbit/s": h.MegabitsPerS,
				"rto": float64(h.RetransmissionTimeouts), "sent-again": float64(h.Retransmitted),
			})
		})
	}
}

func BenchmarkProcessRedis(b *testing.B) {
	if _, err := scenario.FindCRIU(b.Context(), ""); err != nil {
		b.Skip(err)
	}
	var sums [2]scenario.Pauses
	for range benchmarkRounds {
		r, err := scenario.Process(testContext(b, 5*time.Minute), scenario.ProcessConfig{
			Command: binary(b), Lab: labName("redis"), Moves: benchmarkMoves / benchmarkRounds,
		})
		if err != nil {
			b.Fatal(err)
		}
		if !r.OK {
			b.Error(r.Problems)
		}
		sums[0].Add(&r.Pauses)
		sums[1].Add(r.CRIUAlone)
	}
	for _, p := range sums {
		b.Run(p.Mover, func(b *testing.B) { reportPauses(b, &p) })
	}
}
