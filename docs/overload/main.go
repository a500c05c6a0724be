// SPDX-License-Identifier: Apache-2.0

// Command overload prints the comparison of admission policies that docs/sara.md reports: which share of the sessions that a cluster
// could complete, it completes under more load than it can bear. What it prints is in overload.txt:
//
//	go run ./docs/overload > docs/overload/overload.txt
package main

import (
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/simulation"
)

func main() {
	sessions := flag.Int("sessions", 300_000, "sessions of each run of the base, of which there are four for each policy; others have a quarter")
	part := flag.String("part", "", "base, variations, settings or thresholds alone")
	flag.Parse()
	if err := run(os.Stdout, *part, *sessions); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// seeds are the published ones.
func seeds() []uint64 { return []uint64{1, 2, 3, 4} }

func run(w io.Writer, only string, sessions int) error {
	parts := []struct {
		name  string
		print func(io.Writer, int) error
	}{{"base", base}, {"variations", variations}, {"settings", settings}, {"thresholds", thresholds}}
	known := only == ""
	for _, part := range parts {
		if only != "" && part.name != only {
			continue
		}
		known = true
		if err := part.print(w, sessions); err != nil {
			return err
		}
	}
	if !known {
		return fmt.Errorf("-part %s: want base, variations, settings or thresholds", only)
	}
	return nil
}

// base compares all contenders in the same world, seed by seed.
func base(w io.Writer, sessions int) error {
	v := simulation.Variations()[0]
	fmt.Fprintf(w, "%s, %d x %d sessions for each policy, seeds %v; the servers could complete %.1f sessions/s\n\n", v.Name, len(seeds()), sessions, seeds(), v.Config.Capacity())
	fmt.Fprintf(w, "%-20s %9s %13s %8s %8s %8s %8s %8s %8s\n", "", "completed", "least-most", "refused", "success", "of long", "busy", "in vain", "answer")
	fmt.Fprintf(w, "%-20s %9s %13s %8s %8s %8s %8s %8s %8s\n", "", "/s", "of a seed", "of come", "of let in", "", "", "", "ms")
	for _, c := range simulation.Contenders() {
		var results []simulation.Result
		least, most := math.Inf(1), 0.0
		for _, seed := range seeds() {
			r, err := simulation.Compete(c, v, sessions, seed)
			if err != nil {
				return err
			}
			results = append(results, r)
			least, most = min(least, r.CompletedPerSecond()), max(most, r.CompletedPerSecond())
		}
		r := simulation.Sum(results...)
		fmt.Fprintf(w, "%-20s %9.1f %6.1f-%6.1f %8.3f %9.3f %7.3f %8.3f %8.3f %8d\n", c.Name, r.CompletedPerSecond(), least, most,
			float64(r.Refused)/float64(r.Offered), r.Success(), r.LongSuccess(), r.Busy, r.Wasted, r.Wait().Milliseconds())
	}
	return nil
}

// variations change the world.
func variations(w io.Writer, sessions int) error {
	contenders := simulation.Contenders()[:8]
	fmt.Fprintf(w, "\nCompleted sessions as a share of those that the servers could complete in the base, each with one thing changed (%d x %d sessions)\n\n", len(seeds()), sessions/4)
	fmt.Fprintf(w, "%-41s", "")
	for _, c := range contenders {
		fmt.Fprintf(w, " %17s", c.Name)
	}
	fmt.Fprintln(w)
	for _, v := range simulation.Variations() {
		fmt.Fprintf(w, "%-41s", v.Name)
		for _, c := range contenders {
			r, err := simulation.Compete(c, v, sessions/4, seeds()...)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, " %17.3f", r.CompletedPerSecond()/v.Config.Capacity())
		}
		fmt.Fprintln(w)
	}
	return nil
}

// settings change the policies.
func settings(w io.Writer, sessions int) error {
	v := simulation.Variations()[0]
	fmt.Fprintf(w, "\nThe same share in the base with other settings\n\n")
	run := func(name string, v simulation.Variation, config admission.Config) error {
		r, err := simulation.Compete(simulation.Contender{Admission: config}, v, sessions/4, seeds()...)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%-72s %.3f, success %.3f\n", name, r.CompletedPerSecond()/v.Config.Capacity(), r.Success())
		return nil
	}
	line := func(name string, config admission.Config) error { return run(name, v, config) }
	for _, p := range []float64{0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5} {
		constant := simulation.Variation{Config: simulation.Config{RefuseAll: p}}
		if err := run(fmt.Sprintf("every request refused with p = %.2f", p), constant, admission.Config{}); err != nil {
			return err
		}
	}
	for _, bound := range []int{2, 5, 10, 20, 50, 100, 200, 400} {
		if err := line(fmt.Sprintf("leastconn503, %d connections", bound), admission.Config{Kind: admission.LeastConnections503, Connections: bound}); err != nil {
			return err
		}
	}
	for _, kind := range []admission.Kind{admission.Static, admission.Request, admission.SA2C} {
		for _, t := range [][2]float64{{0.40, 0.60}, {0.55, 0.70}, {0.62, 0.72}, {0.65, 0.80}, {0.70, 0.85}} {
			config := admission.Config{Kind: kind, T1: t[0], T2: t[1], T3: 0.9, C: 1}
			if err := line(fmt.Sprintf("%s, T1 = %.2f, T2 = %.2f", kind, t[0], t[1]), config); err != nil {
				return err
			}
		}
	}
	for _, part := range []float64{0, 1} {
		for _, t := range [][4]float64{{0.65, 0.80, 0.90, 1}, {0.62, 0.72, 0.90, 1}, {0.62, 0.72, 0.80, 0.90}} {
			world := simulation.Variation{Config: simulation.Config{LargestPart: part}}
			name := map[float64]string{0: "sum of parts", 1: "largest part"}[part]
			if err := run(fmt.Sprintf("sa2c, load is the %s, thresholds %v", name, t), world, admission.Config{T1: t[0], T2: t[1], T3: t[2], C: t[3]}); err != nil {
				return err
			}
		}
	}
	for _, alpha := range []float64{1, 0.9, 0.5} {
		// Thresholds go with alpha: equal loads give alpha times the load.
		scale := alpha / admission.DefaultAlpha
		config := admission.Config{Alpha: alpha, T1: 0.65 * scale, T2: 0.8 * scale, T3: 0.9 * scale, C: scale}
		if err := line(fmt.Sprintf("sa2c, alpha = %.1f, thresholds to scale", alpha), config); err != nil {
			return err
		}
	}
	return nil
}

// thresholds shows what a static threshold and SA2C pay for throughput in waiting.
func thresholds(w io.Writer, sessions int) error {
	v := simulation.Variations()[0]
	fmt.Fprintf(w, "\nA static threshold T2, decided ten times a second, beside SA2C: completed, and how long an answer takes\n\n")
	for _, t := range [][2]float64{{0.50, 0.66}, {0.60, 0.70}, {0.62, 0.72}, {0.65, 0.73}, {0.65, 0.74}, {0.65, 0.76}, {0.65, 0.80}} {
		fmt.Fprintf(w, "T1 = %.2f, T2 = %.2f", t[0], t[1])
		for _, config := range []admission.Config{{Kind: admission.Static, Interval: 100 * time.Millisecond}, {Kind: admission.SA2C}} {
			config.T1, config.T2, config.T3, config.C = t[0], t[1], 0.9, 1
			r, err := simulation.Compete(simulation.Contender{Admission: config}, v, sessions/4, seeds()...)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "   %6s %.3f %5d ms", config.Kind, r.CompletedPerSecond()/v.Config.Capacity(), r.Wait().Milliseconds())
		}
		fmt.Fprintln(w)
	}
	return nil
}
