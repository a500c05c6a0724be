// SPDX-License-Identifier: Apache-2.0

package forecast

import (
	"errors"
	"fmt"
	"math"
)

// ErrLoad means that a number is no load: negative, infinite or not a number.
var ErrLoad = errors.New("forecast: a load is a finite number of at least 0")

// Bounds of Config.
const (
	DefaultWindow = 8
	maxWindow     = 1024
	maxAhead      = 64
)

// Config says how a load is forecast. The zero Config is a window of 8 samples and one step.
type Config struct {
	// Window is T of eq. 5, the number of samples that the line is drawn through (2-1024); 0 means 8. A longer window is
	// steadier and sees a turn later.
	Window int
	// Ahead is how many intervals after the last sample the forecast is for (1-64); 0 means 1.
	Ahead int
	// Ceiling is what a load cannot exceed, in the load's own unit: a line may. 0: there is none.
	Ceiling float64
}

func (c Config) withDefaults() Config {
	if c.Window == 0 {
		c.Window = DefaultWindow
	}
	if c.Ahead == 0 {
		c.Ahead = 1
	}
	if c.Ceiling == 0 {
		c.Ceiling = math.Inf(1)
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Window < 2 || c.Window > maxWindow:
		return fmt.Errorf("forecast: window: %d: want 2 to %d samples", c.Window, maxWindow)
	case c.Ahead < 1 || c.Ahead > maxAhead:
		return fmt.Errorf("forecast: ahead: %d: want 1 to %d intervals", c.Ahead, maxAhead)
	case math.IsNaN(c.Ceiling) || c.Ceiling < 0:
		return fmt.Errorf("forecast: ceiling: %v: want more than 0, or 0 for none", c.Ceiling)
	}
	return nil
}

// Series is the load of one node.
type Series struct {
	config  Config
	weights []float64 // for a full window, the oldest sample's first
	samples []float64 // a ring: eq. 5's vector
	next    int       // where the next sample goes
	filled  int
	last    Estimate
}

// Estimate is what is known of a node's load after a sample. All loads are in the unit of the samples.
type Estimate struct {
	// Measured is the last sample, l_j^i.
	Measured float64
	// Forecast is what the line gives for the next sample (eq. 6), no less than 0 and no more than the ceiling.
	Forecast float64
	// Error is how wrong the forecast of the last sample was (eq. 7), from 0 to 1.
	Error float64
	// Value is Forecast where forecasts hold, and Measured where they fail (eq. 8). Decisions go by it.
	Value float64
}

// New returns a series without samples. Errors name the setting.
func New(config Config) (*Series, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	s := &Series{config: config, samples: make([]float64, config.Window), weights: make([]float64, config.Window)}
	for k := range s.weights {
		s.weights[k] = weight(k+1, config.Window, config.Ahead)
	}
	return s, nil
}

// Observe takes the load of an interval (SARA 18) and returns the new estimate. It returns ErrLoad, and leaves the series as it was, if
// the number cannot be a load.
func (s *Series) Observe(load float64) (Estimate, error) {
	if load < 0 || math.IsInf(load, 0) || math.IsNaN(load) {
		return s.last, fmt.Errorf("%w: %v", ErrLoad, load)
	}
	e := Estimate{Measured: load}
	if s.filled > 0 {
		e.Error = relativeError(s.last.Forecast, load)
	}
	s.samples[s.next] = load
	s.next = (s.next + 1) % len(s.samples)
	s.filled = min(s.filled+1, len(s.samples))
	e.Forecast = min(max(s.extrapolate(), 0), s.config.Ceiling)
	e.Value = blend(e.Error, e.Forecast, load)
	s.last = e
	return e, nil
}

// Estimate returns the last one, zero when there is no sample.
func (s *Series) Estimate() Estimate { return s.last }

// Len returns the number of samples in the window.
func (s *Series) Len() int { return s.filled }

// Reset forgets all samples.
func (s *Series) Reset() { s.next, s.filled, s.last = 0, 0, Estimate{} }

// extrapolate is eq. 6 (SARA 19). Until the window is full the line goes through the samples that there are.
func (s *Series) extrapolate() float64 {
	sum := 0.0
	if s.filled < len(s.samples) {
		for k, load := range s.samples[:s.filled] {
			sum += weight(k+1, s.filled, s.config.Ahead) * load
		}
		return sum
	}
	older := s.samples[s.next:]
	for k, load := range older {
		sum += s.weights[k] * load
	}
	for k, load := range s.samples[:s.next] {
		sum += s.weights[len(older)+k] * load
	}
	return sum
}

// relativeError is eq. 7 (SARA 20): |(forecast - measured) / measured|, at most 1. The print does not say what holds for an idle node:
// there a forecast is right or wrong.
func relativeError(forecast, measured float64) float64 {
	difference := math.Abs(forecast - measured)
	if difference == 0 {
		return 0
	}
	if difference >= measured {
		return 1
	}
	return difference / measured
}

// blend is eq. 8 (SARA 21).
func blend(err, forecast, measured float64) float64 { return (1-err)*forecast + err*measured }
