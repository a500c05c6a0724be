// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"errors"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher"
	dispatcherapi "github.com/rehome-net/rehome/dispatcher/api"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// The benchmarks of the dispatcher run each front in turn in one farm, so that figures of one run can be compared. Whole measurements are made
// once: b.N plays no part.

// eachFront runs a measurement for every front as a sub-benchmark.
func eachFront(b *testing.B, measure func(b *testing.B, f *scenario.Farm, front scenario.Front)) {
	lab := labName("fbench")
	f := farm(b, scenario.FarmConfig{Lab: lab, Agents: true, Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(lab).VIPs)})
	for _, front := range append(scenario.Peers(), scenario.Rehome(), scenario.RehomeSocketless(), scenario.RehomeNFT()) {
		b.Run(front.Name(), func(b *testing.B) {
			startFront(b, f, front)
			measure(b, f, front)
		})
	}
}

func BenchmarkDispatchLatency(b *testing.B) {
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		l, err := scenario.MeasureLatency(testContext(b, 2*time.Minute), f, front, 2000)
		if err != nil {
			b.Fatal(err)
		}
		report(b, map[string]float64{
			"added-us-median": float64(l.Median), "added-us-p99": float64(l.P99),
			"total-us-median": float64(l.Front.Total.Median), "total-us-p99": float64(l.Front.Total.P99),
			"direct-us-median": float64(l.Direct.Total.Median), "direct-us-p99": float64(l.Direct.Total.P99),
			"answer-us-median": float64(l.Front.Answer.Median),
		})
	})
}

func BenchmarkDispatchNewConnections(b *testing.B) {
	benchLoad(b, scenario.LoadConfig{NewConnections: true})
}

func BenchmarkDispatchKeptConnections(b *testing.B) { benchLoad(b, scenario.LoadConfig{}) }

func benchLoad(b *testing.B, cfg scenario.LoadConfig) {
	needPrograms(b, "wrk")
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		l, err := scenario.MeasureLoad(testContext(b, time.Minute), f, front, cfg)
		if err != nil {
			b.Fatal(err)
		}
		report(b, map[string]float64{
			"requests/s": l.PerSecond, "answer-us-median": float64(l.Median), "answer-us-p99": float64(l.P99), "failed": float64(l.Failed()),
		})
	})
}

func BenchmarkDispatchDownload(b *testing.B) {
	needPrograms(b, "curl")
	const runs = 3
	warm, direct := false, 0.0
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		ctx := testContext(b, 5*time.Minute)
		if !warm {
			if err := scenario.WarmUp(ctx, f); err != nil {
				b.Fatal(err)
			}
			warm = true
		}
		var rate, cpu, bpf, server, client, machine, sent []float64
		for range runs {
			d, err := scenario.MeasureDownload(ctx, f, front)
			if err != nil {
				b.Fatal(err)
			}
			rate, cpu, bpf = append(rate, d.MegabitsPerS), append(cpu, d.Front), append(bpf, d.FrontBPF)
			server, client, machine = append(server, d.Server), append(client, d.Client), append(machine, d.Machine)
			sent = append(sent, d.FrontSent)
		}
		if front.Name() == scenario.Direct().Name() {
			direct = median(machine)
		}
		report(b, map[string]float64{
			"added-machine-cpu-s/GB": median(machine) - direct,
			"Mbit/s":                 median(rate), "front-cpu-s/GB": median(cpu), "front-bpf-s/GB": median(bpf),
			"server-cpu-s/GB": median(server), "client-cpu-s/GB": median(client), "machine-cpu-s/GB": median(machine),
			"front-sent-B/B": median(sent),
		})
	})
}

// BenchmarkDispatchDownloadTurns downloads directly and through rehome in turns: as rehome is by default, where packets skip one end of the
// dispatcher's veth pair, and without that.
func BenchmarkDispatchDownloadTurns(b *testing.B) {
	needPrograms(b, "curl")
	eachShortcut(b, downloadTurns)
}

// BenchmarkDispatchAck is what the way by the front costs the acknowledgements of such a download.
func BenchmarkDispatchAck(b *testing.B) {
	eachShortcut(b, func(b *testing.B, f *scenario.Farm, rehome scenario.Front) {
		c, err := scenario.MeasureAckCost(testContext(b, time.Minute), f, rehome, 500)
		if err != nil {
			b.Fatal(err)
		}
		report(b, map[string]float64{
			"direct-ns": float64(c.Direct.Median), "rehome-ns": float64(c.Front.Median), "added-ns": float64(c.Front.Median - c.Direct.Median),
		})
	})
}

// eachShortcut measures rehome with packets that skip one end of the dispatcher's veth pair, which is the default, and without.
func eachShortcut(b *testing.B, measure func(b *testing.B, f *scenario.Farm, rehome scenario.Front)) {
	for _, by := range []dispatcher.Shortcut{dispatcher.ShortcutAuto, dispatcher.ShortcutOff} {
		b.Run("shortcut="+string(by), func(b *testing.B) {
			lab := labName("fturns")
			f := farm(b, scenario.FarmConfig{Lab: lab, Agents: true, Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(lab).VIPs)})
			rehome := scenario.RehomeAdjusted(func(c *dispatcher.Config) { c.Forward.Shortcut = by })
			startFront(b, f, rehome)
			if by == dispatcher.ShortcutAuto {
				awaitShortcut(b, lab)
			}
			measure(b, f, rehome)
		})
	}
}

func downloadTurns(b *testing.B, f *scenario.Farm, rehome scenario.Front) {
	// A turn is of 4 GiB, which take about 1.3 s.
	const turns, times = 14, 2
	direct := scenario.Direct()
	ctx := testContext(b, 5*time.Minute)
	if err := scenario.WarmUp(ctx, f); err != nil {
		b.Fatal(err)
	}
	rates, err := scenario.DownloadTurns(ctx, f, []scenario.Front{direct, rehome}, turns, times)
	if err != nil {
		b.Fatal(err)
	}
	percent := scenario.Percent(rates[1], rates[0])
	b.Logf("Mbit/s, direct %.0f, rehome %.0f, percent %.1f", rates[0], rates[1], percent)
	report(b, map[string]float64{
		"direct-Mbit/s": median(rates[0]), "rehome-Mbit/s": median(rates[1]),
		"percent-median": median(percent), "percent-mean": mean(percent), "percent-mean-error": meanError(percent),
	})
}

// awaitShortcut waits until the dispatcher of a farm says that frames leave by the shortcut.
func awaitShortcut(b *testing.B, lab string) {
	b.Helper()
	client, err := dispatcherapi.Dial(scenario.ControlSocket(lab, scenario.FrontHost), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close() //nolint:errcheck // nothing was written
	ctx := testContext(b, 10*time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		s, err := client.Status(ctx, &dispatcherapi.StatusRequest{})
		if err != nil {
			b.Fatal(err)
		}
		if ways := s.GetTable().GetWays(); len(ways) == 1 && ways[0].GetShortcut() {
			return
		}
		select {
		case <-ctx.Done():
			b.Fatalf("no shortcut: %v", s.GetTable().GetWays())
		case <-tick.C:
		}
	}
}

func BenchmarkDispatchPeekedMemory(b *testing.B) {
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		d, ok := front.(scenario.FrontDaemon)
		if !ok {
			b.Skip("no process")
		}
		m, err := scenario.MeasurePeekedMemory(testContext(b, time.Minute), f, d, 1000)
		if err != nil {
			b.Fatal(err)
		}
		report(b, map[string]float64{"B/connection": m.BytesEach})
	})
}

func BenchmarkDispatchRestart(b *testing.B) {
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		r, err := scenario.MeasureRestart(testContext(b, 2*time.Minute), f, front, scenario.RestartConfig{})
		if err != nil {
			b.Fatal(err)
		}
		b.Log(r.Problems)
		report(b, map[string]float64{
			"failed": float64(r.Failed), "downloads": float64(r.Downloads), "retransmitted": float64(r.Retransmitted), "back-ms": r.BackMillis,
		})
	})
}

func BenchmarkDispatchReload(b *testing.B) {
	needPrograms(b, "wrk")
	eachFront(b, func(b *testing.B, f *scenario.Farm, front scenario.Front) {
		d, ok := front.(scenario.FrontReloader)
		if !ok {
			b.Skip("does not route by host name")
		}
		r, err := scenario.MeasureReload(testContext(b, time.Minute), f, d, 10000, 8*time.Second)
		if err != nil {
			b.Fatal(errors.Join(err, errors.New(f.Logs(scenario.FrontHost))))
		}
		report(b, map[string]float64{
			"reload-ms": r.Millis, "requests/s": r.Load.PerSecond, "failed": float64(r.Load.Failed()), "requests": float64(r.Load.Requests),
		})
	})
}
