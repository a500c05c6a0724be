// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// DefaultListen is where reports are awaited.
const DefaultListen = ":7072"

// Config says what a monitor listens to. Keys is required; every other zero value works.
type Config struct {
	// Listen is the UDP address, host:port; DefaultListen when empty.
	Listen string
	// Keys are the keys that servers may use.
	Keys []vitals.Key
	// Skew is by how much hosts' clocks may differ; vitals.DefaultSkew when 0.
	Skew time.Duration
	// Availability and Load are the engines' own.
	Availability availability.Config
	Load         load.Config
	// Changed is told of every change of a host's availability, LoadChanged of monitors that fail and come back, and Reported of every
	// load vector, in order. All are called by the monitor's own thread: they must not wait, for a lock that others hold for long or a log that is
	// slow for instance. nil: nobody is told.
	Changed     func(availability.Event)
	LoadChanged func(load.Event)
	Reported    func(host uint32, s load.Sample)
	// Logger gets what Run has to say before it begins; nil: nothing.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.Changed == nil {
		c.Changed = func(availability.Event) {}
	}
	if c.LoadChanged == nil {
		c.LoadChanged = func(load.Event) {}
	}
	if c.Reported == nil {
		c.Reported = func(uint32, load.Sample) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if len(c.Keys) == 0 {
		return errors.New("keys: missing: reports are authenticated")
	}
	return nil
}

// Host is what the monitor knows of one host.
type Host struct {
	Status availability.Status
	// Sample is the newest load; LoadKnown is false when there is none, or its monitor has failed.
	Sample    load.Sample
	LoadKnown bool
}

// Stats counts what the monitor did since it was opened.
type Stats struct {
	// Heartbeats and Vectors were genuine and new, and came from hosts that are known or not.
	Heartbeats, Vectors uint64
	// Refused counts datagrams by reason: key, forged, replayed, clock, malformed.
	Refused map[string]uint64
	// Strangers are heartbeats of hosts that are not known: genuine, and of no use. Their configuration is older or newer than ours.
	Strangers uint64
	// Dropped are datagrams that the kernel threw away because the socket's buffer was full.
	Dropped uint64
	// Blind is how often, and BlindTime for how long, the monitor did not run when it should have.
	Blind     uint64
	BlindTime time.Duration
	// Late is the longest time that a datagram waited for the monitor.
	Late time.Duration
}
