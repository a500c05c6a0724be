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
	"slices"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/simulation"
)

func main() {
	sessions := flag.Int("sessions", 300_000, "sessions of each run of the base, of which there are four for each policy; others have a quarter")
	part := flag.String("part", "", "base, variations, settings, thresholds or bursts alone")
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
	}{{"base", base}, {"variations", variations}, {"settings", settings}, {"thresholds", thresholds}, {"bursts", bursts}}
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
		return fmt.Errorf("-part %s: want base, variations, settings, thresholds or bursts", only)
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

// bursts shows what decides how much is completed when the load comes in bursts: how long a queue a policy lets grow, which is worked off between them.
func bursts(w io.Writer, sessions int) error {
	fmt.Fprintf(w, "\nBursts, beside loads that last (%d x %d sessions): completed, and how long an answer takes\n\n", len(seeds()), sessions/4)
	worlds, err := named("bursts of 3.5 for 20 s, 0.5 for 40 s", "base: twice the load", "1.2 times the load", "0.9 times the load")
	if err != nil {
		return err
	}
	unforecast := worlds[0]
	unforecast.Config.Unforecast = true
	static := admission.Config{Kind: admission.Static, Interval: 100 * time.Millisecond}
	for _, c := range []struct {
		name   string
		config admission.Config
		t      [2]float64
		worlds []simulation.Variation
	}{
		{"static", static, [2]float64{0.70, 0.85}, worlds},
		{"static, where sa2c rests", static, [2]float64{0.70, 0.775}, worlds},
		{"sa2c", admission.Config{}, [2]float64{0.70, 0.85}, worlds},
		{"sa2c, T1 = 0.75", admission.Config{}, [2]float64{0.75, 0.85}, worlds},
		{"sa2c, T1 = 0.80, T2 = 0.89", admission.Config{}, [2]float64{0.80, 0.89}, worlds},
		{"sa2c, fixed", admission.Config{FixedThresholds: true}, [2]float64{0.70, 0.85}, worlds[:1]},
		{"sa2c, not forecast", admission.Config{}, [2]float64{0.70, 0.85}, []simulation.Variation{unforecast}},
	} {
		c.config.T1, c.config.T2, c.config.T3, c.config.C = c.t[0], c.t[1], admission.DefaultT3, admission.DefaultC
		fmt.Fprintf(w, "%-28s", c.name)
		for _, v := range c.worlds {
			r, err := simulation.Compete(simulation.Contender{Admission: c.config}, v, sessions/4, seeds()...)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "  %.3f %5d ms", r.CompletedPerSecond()/v.Config.Capacity(), r.Wait().Milliseconds())
		}
		fmt.Fprintln(w)
	}
	return nil
}

// named returns variations by their names.
func named(names ...string) ([]simulation.Variation, error) {
	all := simulation.Variations()
	list := make([]simulation.Variation, len(names))
	for i, name := range names {
		at := slices.IndexFunc(all, func(v simulation.Variation) bool { return v.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("no variation %q", name)
		}
		list[i] = all[at]
	}
	return list, nil
}
