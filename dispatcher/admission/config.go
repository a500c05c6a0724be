// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"math"
	"time"
)

// Kind names a policy, as it stands in the configuration.
type Kind string

// Policies.
const (
	SA2C                Kind = "sa2c"
	None                Kind = "none"
	Static              Kind = "static"
	Request             Kind = "request"
	LeastConnections503 Kind = "leastconn503"
)

// Reading is how SA2C's equations 2 and 4 are read.
type Reading string

// Readings.
const (
	// Repaired is what the paper's text describes: probabilities that grow with the load, without a jump.
	Repaired Reading = "repaired"
	// Literal is what the equations say as they are printed; see literal.
	Literal Reading = "literal"
)

// Defaults of Config.
const (
	DefaultAlpha       = 0.9
	DefaultT1          = 0.70
	DefaultT2          = 0.85
	DefaultT3          = 0.92
	DefaultC           = 1.00
	DefaultGap         = 0.01
	DefaultInterval    = 200 * time.Millisecond
	DefaultFloor       = 100 * time.Millisecond
	DefaultConnections = 1000
)

// Config says how traffic is admitted. The zero Config is SA2C in the repaired reading with the defaults above.
type Config struct {
	// Kind is the policy; SA2C when empty.
	Kind Kind
	// Reading is how SA2C is read; Repaired when empty.
	Reading Reading
	// Alpha of eq. 1 weighs the mean of the nodes' loads against their variance (above 0, at most 1); 0 means 0.9.
	Alpha float64
	// T1 < T2 < T3 < C are the thresholds of eq. 2, in units of the load that eq. 1 gives. All four are given, or none: then they
	// are 0.70, 0.85, 0.92 and 1.
	T1, T2, T3, C float64
	// Gap is the least distance between two thresholds, which stops eq. 4; 0 means 0.01.
	Gap float64
	// FixedThresholds leaves T2 and T3 where they are: without eq. 4.
	FixedThresholds bool
	// Interval is t, the time between two decisions while there is no overload; 0 means 200 ms. It should be no longer than the time between load
	// reports: below T1 everybody is let in for so long, and what comes in that time has to be borne.
	Interval time.Duration
	// Floor is the shortest time between two decisions, where eq. 3 stops; 0 means 100 ms. Less than the interval between load
	// reports makes no sense: moving thresholds would move by the same loads again.
	Floor time.Duration
	// Connections is how many connections a backend may have with LeastConnections503; 0 means 1000.
	Connections int
}

func (c Config) withDefaults() Config {
	orDefault(&c.Kind, SA2C)
	orDefault(&c.Reading, Repaired)
	orDefault(&c.Alpha, DefaultAlpha)
	if c.T1 == 0 && c.T2 == 0 && c.T3 == 0 && c.C == 0 {
		c.T1, c.T2, c.T3, c.C = DefaultT1, DefaultT2, DefaultT3, DefaultC
	}
	orDefault(&c.Gap, DefaultGap)
	orDefault(&c.Interval, DefaultInterval)
	orDefault(&c.Floor, min(DefaultFloor, c.Interval))
	orDefault(&c.Connections, DefaultConnections)
	return c
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	for _, number := range []struct {
		name  string
		value float64
	}{{"alpha", c.Alpha}, {"t1", c.T1}, {"t2", c.T2}, {"t3", c.T3}, {"c", c.C}, {"gap", c.Gap}} {
		if math.IsNaN(number.value) || math.IsInf(number.value, 0) || number.value <= 0 {
			return fmt.Errorf("admission: %s: %v: want a number above 0", number.name, number.value)
		}
	}
	switch {
	case c.Reading != Repaired && c.Reading != Literal:
		return fmt.Errorf("admission: reading %q: want %s or %s", c.Reading, Repaired, Literal)
	case c.Alpha > 1:
		return fmt.Errorf("admission: alpha: %v: want at most 1", c.Alpha)
	case c.T2-c.T1 < c.Gap || c.T3-c.T2 < c.Gap || c.C-c.T3 < c.Gap:
		return fmt.Errorf("admission: thresholds %v, %v, %v and %v: want t1 < t2 < t3 < c, each at least the gap of %v above the one before", c.T1, c.T2, c.T3, c.C, c.Gap)
	case c.Interval < 0 || c.Floor < 0 || c.Floor > c.Interval:
		return fmt.Errorf("admission: floor %v and interval %v: want 0 < floor <= interval", c.Floor, c.Interval)
	case c.Connections < 0:
		return fmt.Errorf("admission: connections: %d: want at least 1", c.Connections)
	}
	return nil
}
