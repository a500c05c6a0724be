// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forecast"
)

// Config is one run. The zero Config, but for Sessions, is a cluster of eight servers at twice the load that it can bear, under SA2C.
type Config struct {
	// Seed makes runs differ.
	Seed uint64
	// Sessions is how many come; the run ends when the last one has. 0 means 10,000.
	Sessions int
	// Offered is the load that is offered, as a multiple of what the servers can do; 0 means 2.
	Offered float64
	// Changes change the offered load and the servers' speed in the course of the run, in order of time.
	Changes []Change

	// Servers is how many there are; 0 means 8.
	Servers int
	// ServiceTime is how long a request is served on average; 0 means 5 ms.
	ServiceTime time.Duration
	// Requests is how many a session has on average; 0 means 12.
	Requests float64
	// Memoryless lets sessions end after any request with the same probability, so that many have a single one. Otherwise each has a
	// third of the average to begin with, as for signalling, before that holds.
	Memoryless bool
	// ThinkTime is the average time between an answer and the next request; 0 means 1 s.
	ThinkTime time.Duration
	// Patience is how long a client waits for an answer; 0 means 4 s.
	Patience time.Duration
	// Notices means that servers do not serve requests whose clients have gone.
	Notices bool
	// RetryAfter is when a request that was refused is sent again, twice as long after each time; 0 means 1 s.
	RetryAfter time.Duration
	// NewRetries is how often the first request of a session is sent again when it was refused, by the same times. 0: the client
	// takes the first no for an answer.
	NewRetries int

	// Report is the time between two reports of a server's load; 0 means 100 ms.
	Report time.Duration
	// LargestPart makes servers report the greater one of the share of time in which they were busy, times LargestPart, and the share of a
	// client's patience that a new request would have to wait, as package load makes one number of many. 0: the sum that the package's
	// documentation describes.
	LargestPart float64
	// Admission refuses; see admission.Config for its zero value.
	Admission admission.Config
	// RefuseAll is a probability with which every request is refused, be it a session's first or last, in the place of what Admission
	// decides by the load: admission control that knows no sessions, at a rate that somebody has found best. 0: Admission decides.
	RefuseAll float64
	// Forecast is how loads are forecast; its ceiling is 1, as no load reported here is more.
	Forecast forecast.Config
	// Unforecast shows the measured loads to admission and balance.
	Unforecast bool
	// Balance chooses servers; least connections when empty.
	Balance balance.Kind
	// KeptConnections means that a session is one connection for as long as it lasts. Otherwise each request is one, and what counts as a
	// server's connections are the requests that it has not answered.
	KeptConnections bool
	// Uncounted makes the sessions given since a report not count: every choice looks like the first one after a report.
	Uncounted bool

	// WarmUp is left out of the figures; 0 means one minute.
	WarmUp time.Duration
	// Trace keeps the servers' loads, averaged over this time; 0 keeps none.
	Trace time.Duration
}

// Change is something that happens to the cluster.
type Change struct {
	// At is when, from the beginning.
	At time.Duration
	// Offered is the load offered from then on, as Config.Offered; 0 leaves it as it is.
	Offered float64
	// Speed is the speed of Server from then on, 1 being normal; 0 leaves it as it is.
	Speed  float64
	Server int
	// Leave takes Server out, for new sessions; Join takes it in.
	Leave, Join bool
}

func (c Config) withDefaults() Config {
	orDefault(&c.Sessions, 10_000)
	orDefault(&c.Offered, 2)
	orDefault(&c.Servers, 8)
	orDefault(&c.ServiceTime, 5*time.Millisecond)
	orDefault(&c.Requests, 12)
	orDefault(&c.ThinkTime, time.Second)
	orDefault(&c.Patience, 4*time.Second)
	orDefault(&c.RetryAfter, time.Second)
	orDefault(&c.Report, 100*time.Millisecond)
	orDefault(&c.Balance, balance.LeastConnections)
	orDefault(&c.WarmUp, time.Minute)
	orDefault(&c.Forecast.Ceiling, 1)
	return c
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"service time", c.ServiceTime},
		{"think time", c.ThinkTime},
		{"patience", c.Patience},
		{"retry after", c.RetryAfter},
		{"report", c.Report},
		{"warm-up", c.WarmUp},
	} {
		if d.value <= 0 {
			return fmt.Errorf("simulation: %s: %v: want more than 0", d.name, d.value)
		}
	}
	switch {
	case c.Sessions < 0:
		return fmt.Errorf("simulation: sessions: %d: want at least 1", c.Sessions)
	case c.Servers < 0 || c.Servers > math.MaxInt16:
		return fmt.Errorf("simulation: servers: %d: want 1 to %d", c.Servers, math.MaxInt16)
	case !(c.Requests >= 1) || math.IsInf(c.Requests, 0):
		return fmt.Errorf("simulation: requests: %v: want at least 1", c.Requests)
	case !(c.Offered > 0) || math.IsInf(c.Offered, 0):
		return fmt.Errorf("simulation: offered: %v: want more than 0", c.Offered)
	case c.NewRetries < 0:
		return fmt.Errorf("simulation: new retries: %d: want no less than 0", c.NewRetries)
	case !(c.LargestPart >= 0 && c.LargestPart <= 1):
		return fmt.Errorf("simulation: largest part: %v: want a share", c.LargestPart)
	case !(c.RefuseAll >= 0 && c.RefuseAll <= 1):
		return fmt.Errorf("simulation: refuse all: %v: want a probability", c.RefuseAll)
	case c.Trace < 0:
		return fmt.Errorf("simulation: trace: %v: want no less than 0", c.Trace)
	}
	for i, change := range c.Changes {
		if err := c.validateChange(change); err != nil {
			return fmt.Errorf("simulation: changes[%d]: %w", i, err)
		}
		if i > 0 && change.At < c.Changes[i-1].At {
			return fmt.Errorf("simulation: changes[%d]: at %v: want them in order of time", i, change.At)
		}
	}
	return nil
}

func (c Config) validateChange(change Change) error {
	switch {
	case change.At < 0:
		return fmt.Errorf("at %v: want no less than 0", change.At)
	case change.Server < 0 || change.Server >= c.Servers:
		return fmt.Errorf("server: %d: want 0 to %d", change.Server, c.Servers-1)
	case change.Offered < 0 || change.Speed < 0:
		return errors.New("want no negative load or speed")
	case change.Leave && change.Join:
		return errors.New("want leave or join, not both")
	}
	return nil
}

// Capacity is how many sessions per second the servers could complete if none were ever idle and none worked in vain.
func (c Config) Capacity() float64 {
	c = c.withDefaults()
	return float64(c.Servers) / (c.ServiceTime.Seconds() * c.Requests)
}
