// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"gonum.org/v1/plot/plotter"

	"github.com/rehome-net/rehome/dispatcher/simulation"
)

// overload draws what is completed of more and more load.
func overload(files map[string][]byte) error {
	const (
		highest  = 3.0
		measured = 3 * time.Minute // at each load, after a minute
	)
	f := newFigure("Sessions completed under overload", "sessions offered, as a multiple of what the servers can do", "completed, the same")
	f.plot.Legend.Left, f.plot.Legend.Top = true, false
	f.plot.Y.Min, f.plot.Y.Max = 0, 1.05
	f.plot.X.Tick.Marker, f.plot.Y.Tick.Marker = every{0.5, "%.1f"}, every{0.2, "%.1f"}
	shown := map[string]string{
		"none": "no admission", "leastconn503, 20": "least connections + 503", "request, 1 s": "request-aware, by the second",
		"request, 100 ms": "request-aware, ten times a second", "static": "static threshold",
		"sa2c": "SA2C", "sa2c literal": "SA2C as printed",
	}
	for _, c := range simulation.Contenders() {
		name, ok := shown[c.Name]
		if !ok {
			continue
		}
		var xys plotter.XYs
		for offered := 0.5; offered <= highest; offered += 0.25 {
			v := simulation.Variation{Config: simulation.Config{Offered: offered}}
			sessions := int(v.Config.Capacity() * offered * (time.Minute + measured).Seconds())
			r, err := simulation.Compete(c, v, sessions, 1)
			if err != nil {
				return err
			}
			xys = append(xys, plotter.XY{X: offered, Y: r.CompletedPerSecond() / v.Config.Capacity()})
		}
		if err := f.line(name, xys, c.Name == "sa2c literal" || c.Name == "request, 100 ms"); err != nil {
			return err
		}
	}
	var err error
	files["overload.svg"], err = f.svg()
	return err
}
