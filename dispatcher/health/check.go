// SPDX-License-Identifier: Apache-2.0

package health

import (
	"fmt"
	"time"
)

// Defaults of CheckConfig.
const (
	DefaultInterval = 2 * time.Second
	DefaultTimeout  = time.Second
	DefaultRise     = 2
	DefaultFall     = 3

	minInterval = 10 * time.Millisecond
)

// CheckConfig says how often a backend is probed, and how probes count. The zero value works.
type CheckConfig struct {
	// Interval is the time between the beginnings of two probes; DefaultInterval when 0.
	Interval time.Duration
	// Hurry is the same while a change is under way: some probes have failed and not enough, or the other way round. Interval when 0.
	Hurry time.Duration
	// Timeout is how long a probe may take; DefaultTimeout, or Interval if that is less, when 0.
	Timeout time.Duration
	// Rise is how many probes in a row must succeed for a backend to be up; DefaultRise when 0. The first probe of all counts
	// by itself, in both directions: nobody knows better.
	Rise int
	// Fall is how many in a row must fail for it to be down; DefaultFall when 0.
	Fall int
	// Jitter spreads probes: each interval is longer or shorter by up to this share of it, 0 to 0.5. 0 is 0.1; negative is none.
	Jitter float64
}

func (c CheckConfig) withDefaults() CheckConfig {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Hurry == 0 {
		c.Hurry = c.Interval
	}
	if c.Timeout == 0 {
		c.Timeout = min(DefaultTimeout, c.Interval)
	}
	if c.Rise == 0 {
		c.Rise = DefaultRise
	}
	if c.Fall == 0 {
		c.Fall = DefaultFall
	}
	if c.Jitter == 0 {
		c.Jitter = 0.1
	}
	c.Jitter = max(c.Jitter, 0)
	return c
}

func (c CheckConfig) validate() error {
	if c.Interval < minInterval {
		return fmt.Errorf("interval: %v: want %v or more", c.Interval, minInterval)
	}
	if c.Hurry < minInterval || c.Hurry > c.Interval {
		return fmt.Errorf("hurry: %v: want %v to the interval, %v", c.Hurry, minInterval, c.Interval)
	}
	if c.Timeout <= 0 {
		return fmt.Errorf("timeout: %v: want more than 0", c.Timeout)
	}
	if c.Rise < 1 || c.Fall < 1 {
		return fmt.Errorf("rise %d, fall %d: want 1 or more", c.Rise, c.Fall)
	}
	if !(c.Jitter <= 0.5) {
		return fmt.Errorf("jitter: %v: want at most 0.5", c.Jitter)
	}
	return nil
}

// State is what probes say of a backend.
type State uint8

// States.
//
//	unknown ── the first probe ──► up ── Fall failures in a row ──► down
//	                               ▲ ◄── Rise successes in a row ────┘
const (
	Unknown State = iota
	Up
	Down
)

// String returns the state in words.
func (s State) String() string {
	names := [...]string{"unknown", "up", "down"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Check counts one backend's probes. It has no clock: times come in.
type Check struct {
	cfg   CheckConfig
	state State
	// run is how many results in a row contradict the state.
	run int
	due time.Time
}

// NewCheck returns a check whose first probe is due at a random moment of the first interval, so that the probes of many backends do not come
// together; spread is random, 0 to 1. The error says what is wrong with the configuration.
func NewCheck(config CheckConfig, now time.Time, spread float64) (*Check, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	first := min(config.Interval, time.Second) // nobody shall wait long for the first word
	return &Check{cfg: config, due: now.Add(time.Duration(spread * float64(first)))}, nil
}

// State returns what is known.
func (c *Check) State() State { return c.state }

// Due returns when the next probe is to begin.
func (c *Check) Due() time.Time { return c.due }

// Timeout returns how long a probe may take.
func (c *Check) Timeout() time.Duration { return c.cfg.Timeout }

// Result counts a probe that began at some time, and reports whether the state has changed. random is 0 to 1, anew each time.
func (c *Check) Result(began time.Time, ok bool, random float64) (changed bool) {
	was := c.state
	switch {
	case c.state == Unknown:
		c.state = Down
		if ok {
			c.state = Up
		}
	case ok == (c.state == Up):
		c.run = 0
	default:
		c.run++
		need := c.cfg.Rise
		if c.state == Up {
			need = c.cfg.Fall
		}
		if c.run >= need {
			c.state, c.run = Up+Down-c.state, 0
		}
	}
	every := c.cfg.Interval
	if c.run > 0 {
		every = c.cfg.Hurry
	}
	c.due = began.Add(time.Duration(float64(every) * (1 + c.cfg.Jitter*(2*random-1))))
	return c.state != was
}
