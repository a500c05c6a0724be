// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// Defaults, and the least intervals.
const (
	DefaultInterval     = 100 * time.Millisecond
	DefaultLoadInterval = 200 * time.Millisecond
	MinInterval         = time.Millisecond
	// MinLoadInterval is some of the kernel's clock ticks, in which it counts processors' time.
	MinLoadInterval = 50 * time.Millisecond
	// maxInterval is where a heartbeat is none any more.
	maxInterval = time.Minute
)

// Config says who is told what. Host, Dispatchers and Key are required.
type Config struct {
	// Host is this host's number, as dispatchers know it; not 0.
	Host uint32
	// Dispatchers are the UDP addresses that reports go to.
	Dispatchers []netip.AddrPort
	// Key signs the reports.
	Key vitals.Key
	// Interval is the time between heartbeats, the paper's d; DefaultInterval when 0. Dispatchers must expect the same.
	Interval time.Duration
	// LoadInterval is the time between load vectors, the paper's delta; DefaultLoadInterval when 0.
	LoadInterval time.Duration
	// Services are the addresses whose listeners' queues count as backlog, and whose connections are counted.
	Services []netip.AddrPort
	// Watch are addresses that somebody must listen at. As long as nobody does the application is reported as down.
	Watch []netip.AddrPort
	// Logger gets what Run has to say; nil: nothing.
	Logger *slog.Logger `json:"-"`
}

func (c Config) withDefaults() Config {
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	if c.LoadInterval == 0 {
		c.LoadInterval = DefaultLoadInterval
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate returns what is wrong with the configuration, but for the key's secret. Zero values are defaults.
func (c Config) Validate() error { return c.withDefaults().validate() }

func (c Config) validate() error {
	if c.Host == 0 {
		return errors.New("host: missing: give this host's number, as the dispatchers know it")
	}
	if len(c.Dispatchers) == 0 {
		return errors.New("dispatchers: missing")
	}
	for _, d := range c.Dispatchers {
		if !d.IsValid() || d.Addr().IsUnspecified() || d.Port() == 0 {
			return fmt.Errorf("dispatchers: %v: want ip:port", d)
		}
	}
	if c.Key.Host != 0 && c.Key.Host != c.Host {
		return fmt.Errorf("key %d is host %d's, this is host %d", c.Key.ID, c.Key.Host, c.Host)
	}
	if c.Interval < MinInterval || c.Interval > maxInterval {
		return fmt.Errorf("interval: %v: want %v to %v", c.Interval, MinInterval, maxInterval)
	}
	if c.LoadInterval < MinLoadInterval || c.LoadInterval > vitals.MaxInterval {
		return fmt.Errorf("load_interval: %v: want %v to %v", c.LoadInterval, MinLoadInterval, vitals.MaxInterval)
	}
	return nil
}

// Stats counts what the reporter did since it was made.
type Stats struct {
	// Heartbeats and Vectors were sent, to all dispatchers together; Failed could not be.
	Heartbeats, Vectors, Failed uint64
	// Skipped are heartbeats that were not sent because their time had passed when the thread ran again.
	Skipped uint64
	// Late is by how much the latest heartbeat was.
	Late time.Duration
}
