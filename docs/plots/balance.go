// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"time"

	"gonum.org/v1/plot/plotter"

	"github.com/rehome-net/rehome/dispatcher/simulation"
)

// balanceSeeds are averaged over.
func balanceSeeds() []uint64 { return []uint64{1, 2, 3, 4, 5, 6, 7, 8} }

// balance draws how servers' loads answer to two steps, and writes down the numbers.
func balance(files map[string][]byte) error {
	join := newFigure("An empty server comes in at 60 s", "time, s", "its load")
	slow := newFigure("A server has half its speed from 120 s to 220 s", "time, s", "its load (0.8: busy all the time)")
	join.plot.Legend.Top = false
	join.plot.Y.Min, join.plot.Y.Max = 0, 0.7
	slow.plot.Y.Min, slow.plot.Y.Max = 0.2, 1.2
	join.plot.X.Tick.Marker, slow.plot.X.Tick.Marker = every{10, "%.0f"}, every{20, "%.0f"}
	join.plot.Y.Tick.Marker, slow.plot.Y.Tick.Marker = every{0.1, "%.1f"}, every{0.2, "%.1f"}
	var table bytes.Buffer
	fmt.Fprintf(&table, "Eight servers, busy for 6/10 of the time; loads reported each second; means of seeds %v. Overshoot is beyond the final load, of means over 5 s.\n\n", balanceSeeds())
	fmt.Fprintf(&table, "%-29s|%27s |%36s |%27s\n", "", "empty server comes in", "server loses half its speed", "and gets it back")
	fmt.Fprintf(&table, "%-29s|%9s %9s %7s |%8s %9s %9s %7s |%9s %9s %7s\n", "", "final", "overshoot", "settled", "final", "overshoot", "settled", "ripple", "final", "overshoot", "settled")
	for _, b := range simulation.Balancers() {
		r, err := simulation.Step(b, balanceSeeds()...)
		if err != nil {
			return err
		}
		variant := b.Uncounted || b.Unforecast
		if err := join.line(b.Name, points(r.Trace, simulation.Joiner, simulation.JoinAt-10*time.Second, simulation.JoinAt+50*time.Second), variant); err != nil {
			return err
		}
		if err := slow.line(b.Name, points(r.Trace, simulation.Slowed, simulation.SlowAt-15*time.Second, simulation.StepEnd), variant); err != nil {
			return err
		}
		j := simulation.ResponseOf(r.Trace, simulation.Joiner, simulation.JoinAt, simulation.SlowAt, true)
		s := simulation.ResponseOf(r.Trace, simulation.Slowed, simulation.SlowAt, simulation.FastAt, true)
		f := simulation.ResponseOf(r.Trace, simulation.Slowed, simulation.FastAt, simulation.StepEnd, false)
		fmt.Fprintf(&table, "%-29s|%9.2f %8.0f%% %7v |%8.2f %8.0f%% %9v %6.0f%% |%9.2f %8.0f%% %7v\n", b.Name,
			j.Final, 100*j.Overshoot, j.Settled, s.Final, 100*s.Overshoot, s.Settled, 100*s.Ripple, f.Final, 100*f.Overshoot, f.Settled)
	}
	files["balance.txt"] = table.Bytes()
	var err error
	if files["balance-join.svg"], err = join.svg(); err != nil {
		return err
	}
	files["balance-slow.svg"], err = slow.svg()
	return err
}

// points are a server's loads between two times.
func points(trace [][]float64, server int, from, to time.Duration) plotter.XYs {
	var xys plotter.XYs
	for i := int(from / time.Second); i < min(int(to/time.Second), len(trace)); i++ {
		xys = append(xys, plotter.XY{X: float64(i + 1), Y: trace[i][server]})
	}
	return xys
}
