// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Size of a figure, in points.
const (
	width  = 560
	height = 300
)

// figure is a plot with lines.
type figure struct {
	plot  *plot.Plot
	lines int
}

func newFigure(title, x, y string) *figure {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	for _, style := range []*text.Style{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	p.BackgroundColor = color.White
	p.Title.Padding = 8
	p.Legend.Top = true
	p.Legend.Padding = 2
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{225}, color.Gray{240}
	p.Add(grid)
	return &figure{plot: p}
}

// colours can be told apart by those who see few (Okabe and Ito 2008).
func colours() []color.Color {
	return []color.Color{
		color.RGBA{0x99, 0x99, 0x99, 255},
		color.RGBA{0xe6, 0x9f, 0x00, 255},
		color.RGBA{0x00, 0x9e, 0x73, 255},
		color.RGBA{0x00, 0x72, 0xb2, 255},
		color.RGBA{0xcc, 0x79, 0xa7, 255},
		color.RGBA{0xd5, 0x5e, 0x00, 255},
		color.RGBA{0x56, 0xb4, 0xe9, 255},
	}
}

// line adds one, with a colour of its own; a dashed one is a variant of something.
func (f *figure) line(name string, points plotter.XYs, dashed bool) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color = colours()[f.lines%len(colours())]
	l.Width = 1.5
	if dashed {
		l.Dashes = []vg.Length{4, 2}
		l.Width = 1
	}
	f.lines++
	f.plot.Add(l)
	f.plot.Legend.Add(name, l)
	return nil
}

// svg returns the figure as a file.
func (f *figure) svg() ([]byte, error) {
	canvas := vgsvg.New(width, height)
	f.plot.Draw(draw.New(canvas))
	var out bytes.Buffer
	if _, err := canvas.WriteTo(&out); err != nil {
		return nil, err
	}
	// Whoever looks at it may not have that font.
	return bytes.ReplaceAll(out.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif;")), nil
}

// every has a tick with a label at each multiple of a step.
type every struct {
	step   float64
	format string
}

// Ticks implements plot.Ticker.
func (e every) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for n := int(math.Ceil(low/e.step - 1e-9)); float64(n)*e.step <= high+1e-9; n++ {
		at := float64(n) * e.step
		ticks = append(ticks, plot.Tick{Value: at, Label: fmt.Sprintf(e.format, at)})
	}
	return ticks
}
