// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"fmt"
	"time"
)

// Defaults, and the least interval.
const (
	DefaultInterval = 100 * time.Millisecond
	DefaultMisses   = 3
	MinInterval     = time.Millisecond
)

// Config says when a host counts as down. The zero value works.
type Config struct {
	// Interval is the time between the heartbeats of a host, the paper's d; DefaultInterval when 0. All hosts have the same.
	Interval time.Duration
	// Misses is for how many intervals a host may be silent, the paper's n; DefaultMisses when 0.
	Misses int
	// Rise is how many heartbeats in a row a host that was down must send before it is taken back; Misses when 0. A host that
	// comes and goes would otherwise be given sessions between two of its failures.
	Rise int
}

func (c Config) withDefaults() Config {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.Misses == 0 {
		c.Misses = DefaultMisses
	}
	if c.Rise == 0 {
		c.Rise = c.Misses
	}
	return c
}

func (c Config) validate() error {
	if c.Interval < MinInterval {
		return fmt.Errorf("interval: %v: want %v or more", c.Interval, MinInterval)
	}
	if c.Misses < 2 {
		return fmt.Errorf("misses: %d: want 2 or more, as the network may lose a heartbeat", c.Misses)
	}
	if c.Rise < 1 {
		return fmt.Errorf("rise: %d: want 1 or more", c.Rise)
	}
	return nil
}

// silence is n·d.
func (c Config) silence() time.Duration { return time.Duration(c.Misses) * c.Interval }
