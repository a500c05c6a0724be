// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func seriesOf(t testing.TB, c Config) *Series {
	t.Helper()
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func near() cmp.Option { return cmpopts.EquateApprox(0, 1e-9) }

// TestEstimates has the numbers of eq. 5-8 worked out by hand.
func TestEstimates(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config Config
		loads  []float64
		want   []Estimate
	}{
		{
			// One sample: the line is flat. Two: through both. Three on a line, then four: T = 4, kbar = 2.5, k* = 5, the sum of squares is
			// 2.25 + 0.25 + 0.25 + 2.25 = 5, so a = 0.25 + (k-2.5)*2.5/5 = -0.5, 0, 0.5, 1:
			// -0.5*0.2 + 0*0.3 + 0.5*0.4 + 1*0.5 = 0.6.
			// Errors: the first forecast of 0.2 for 0.3 is wrong by 0.1/0.3; then the line holds.
			// Second value: (1-1/3)*0.4 + 1/3*0.3 = 11/30.
			name: "straight line", config: Config{Window: 4}, loads: []float64{0.2, 0.3, 0.4, 0.5},
			want: []Estimate{
				{Measured: 0.2, Forecast: 0.2, Error: 0, Value: 0.2},
				{Measured: 0.3, Forecast: 0.4, Error: 1.0 / 3, Value: 11.0 / 30},
				{Measured: 0.4, Forecast: 0.5, Error: 0, Value: 0.5},
				{Measured: 0.5, Forecast: 0.6, Error: 0, Value: 0.6},
			},
		},
		{
			// T = 3: kbar = 2, k* = 4, the sum of squares is 2, so a = 1/3 + (k-2)*2/2 = -2/3, 1/3, 4/3.
			// 0.6 0.6 0.6: -0.4 + 0.2 + 0.8 = 0.6. Then 0.3, forecast 0.6: error 0.3/0.3 = 1;
			// window 0.6 0.6 0.3: -0.4 + 0.2 + 0.4 = 0.2; value = measured = 0.3, since nothing is left of the forecast.
			// Then 0.25, forecast 0.2: error 0.05/0.25 = 0.2; window 0.6 0.3 0.25: -0.4 + 0.1 + 1/3 = 1/30;
			// value 0.8/30 + 0.2*0.25 = 0.0766666.
			name: "a step down", config: Config{Window: 3}, loads: []float64{0.6, 0.6, 0.6, 0.3, 0.25},
			want: []Estimate{
				{Measured: 0.6, Forecast: 0.6, Value: 0.6},
				{Measured: 0.6, Forecast: 0.6, Value: 0.6},
				{Measured: 0.6, Forecast: 0.6, Value: 0.6},
				{Measured: 0.3, Forecast: 0.2, Error: 1, Value: 0.3},
				{Measured: 0.25, Forecast: 1.0 / 30, Error: 0.2, Value: 0.8/30 + 0.05},
			},
		},
		{
			// T = 2: a = 1/2 + (k-1.5)*1.5/0.5 = -1, 2. 1, 0.2: -1 + 0.4 is below 0, which no load is. The error of the forecast 1 for 0.2
			// is 4, clamped to 1. Idle twice: forecast 0 for 0, no error; 0.5 after 0: error 0.5/0.5 = 1, value 0.5.
			name: "floor and idleness", config: Config{Window: 2}, loads: []float64{1, 0.2, 0, 0, 0.5},
			want: []Estimate{
				{Measured: 1, Forecast: 1, Value: 1},
				{Measured: 0.2, Forecast: 0, Error: 1, Value: 0.2},
				{Measured: 0, Forecast: 0, Error: 0, Value: 0},
				{Measured: 0, Forecast: 0, Error: 0, Value: 0},
				{Measured: 0.5, Forecast: 1, Error: 1, Value: 0.5},
			},
		},
		{
			// T = 2, two steps ahead: a = 1/2 + (k-1.5)*2.5/0.5 = -2, 3. 0.5, 0.7: -1 + 2.1 = 1.1, above the ceiling.
			// Error 0.2/0.7 = 2/7; value 5/7*1 + 2/7*0.7.
			name: "ceiling", config: Config{Window: 2, Ahead: 2, Ceiling: 1}, loads: []float64{0.5, 0.7},
			want: []Estimate{
				{Measured: 0.5, Forecast: 0.5, Value: 0.5},
				{Measured: 0.7, Forecast: 1, Error: 2.0 / 7, Value: 5.0/7 + 0.2},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := seriesOf(t, tt.config)
			var got []Estimate
			for _, load := range tt.loads {
				e, err := s.Observe(load)
				if err != nil {
					t.Fatal(err)
				}
				if e != s.Estimate() {
					t.Errorf("Estimate is %+v after %+v", s.Estimate(), e)
				}
				got = append(got, e)
			}
			if d := cmp.Diff(tt.want, got, near()); d != "" {
				t.Errorf("estimates (-want +got):\n%s", d)
			}
		})
	}
}

// TestRegression compares the closed weights with a line fitted by the normal equations, through windows that slide.
func TestRegression(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 19))
	for _, window := range []int{2, 3, 8, 60} {
		for _, ahead := range []int{1, 3} {
			s := seriesOf(t, Config{Window: window, Ahead: ahead})
			var loads []float64
			for range 3 * window {
				load := random.Float64()
				loads = append(loads, load)
				e, err := s.Observe(load)
				if err != nil {
					t.Fatal(err)
				}
				want := max(0, fit(loads[max(0, len(loads)-window):], ahead))
				if math.Abs(e.Forecast-want) > 1e-9 {
					t.Fatalf("window %d, %d samples: forecast %v, want %v", window, len(loads), e.Forecast, want)
				}
			}
			if s.Len() != window {
				t.Errorf("%d samples in a window of %d", s.Len(), window)
			}
		}
	}
}

// fit solves the normal equations of y = a + b x.
func fit(y []float64, ahead int) float64 {
	n, x1, x2, y1, xy := float64(len(y)), 0.0, 0.0, 0.0, 0.0
	for i, v := range y {
		x := float64(i)
		x1, x2, y1, xy = x1+x, x2+x*x, y1+v, xy+x*v
	}
	if len(y) == 1 {
		return y[0]
	}
	b := (n*xy - x1*y1) / (n*x2 - x1*x1)
	a := (y1 - b*x1) / n
	return a + b*(n-1+float64(ahead))
}

// TestBounds holds that an estimate lies where a load can lie, whatever comes.
func TestBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 21))
	s := seriesOf(t, Config{Window: 5, Ceiling: 2})
	for i := range 100_000 {
		load := 2 * random.Float64()
		if i%7 == 0 {
			load = 0
		}
		e, err := s.Observe(load)
		if err != nil {
			t.Fatal(err)
		}
		low, high := min(e.Forecast, e.Measured), max(e.Forecast, e.Measured)
		if e.Error < 0 || e.Error > 1 || e.Forecast < 0 || e.Forecast > 2 || e.Value < low-1e-12 || e.Value > high+1e-12 {
			t.Fatalf("sample %d: %+v", i, e)
		}
	}
}

func TestObserveRefuses(t *testing.T) {
	s := seriesOf(t, Config{})
	if _, err := s.Observe(0.5); err != nil {
		t.Fatal(err)
	}
	for _, load := range []float64{-0.1, math.NaN(), math.Inf(1), math.Inf(-1)} {
		before := s.Estimate()
		if _, err := s.Observe(load); !errors.Is(err, ErrLoad) {
			t.Errorf("%v: %v, want ErrLoad", load, err)
		}
		if s.Len() != 1 || s.Estimate() != before {
			t.Errorf("%v changed the series", load)
		}
	}
	s.Reset()
	if s.Len() != 0 || s.Estimate() != (Estimate{}) {
		t.Error("something is left after Reset")
	}
	if e, _ := s.Observe(0.2); e != (Estimate{Measured: 0.2, Forecast: 0.2, Value: 0.2}) {
		t.Errorf("%+v after Reset", e)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct {
		config Config
		want   string
	}{
		{Config{Window: 1}, "window: 1: want 2 to"},
		{Config{Window: -8}, "window: -8"},
		{Config{Window: maxWindow + 1}, "window: 1025"},
		{Config{Ahead: -1}, "ahead: -1: want 1 to"},
		{Config{Ceiling: -1}, "ceiling: -1"},
		{Config{Ceiling: math.NaN()}, "ceiling: NaN"},
	} {
		if s, err := New(tt.config); s != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: error %v, want one with %q", tt.config, err, tt.want)
		}
	}
}

// TestObserveAllocates holds that a sample costs no memory.
func TestObserveAllocates(t *testing.T) {
	s := seriesOf(t, Config{})
	if n := testing.AllocsPerRun(1000, func() { _, _ = s.Observe(0.5) }); n != 0 {
		t.Errorf("%v allocations for each sample", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, window := range []int{8, 64} {
		b.Run(fmt.Sprint(window), func(b *testing.B) {
			b.ReportAllocs()
			s := seriesOf(b, Config{Window: window})
			for b.Loop() {
				if _, err := s.Observe(0.5); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
