// SPDX-License-Identifier: Apache-2.0

package load

import (
	"fmt"
	"time"
)

// Defaults of ShedConfig.
const (
	DefaultHigh   = 0.85
	DefaultLow    = 0.65
	DefaultHold   = 500 * time.Millisecond
	DefaultSettle = time.Second
	DefaultStay   = 30 * time.Second
	DefaultRate   = 200
)

// ShedConfig says when a server gives sessions away. The zero value works.
type ShedConfig struct {
	// High is the load above which a server sheds, 0 to 1; DefaultHigh when 0.
	High float64
	// Low is the load below which it has shed enough, and above which no server is brought; DefaultLow when 0. It is below High.
	Low float64
	// Hold is how long a server must be above High before it begins; DefaultHold when 0, negative for at once.
	Hold time.Duration
	// Settle is how long it takes a move to show in the reports: their interval, and the time of a move; DefaultSettle when 0.
	Settle time.Duration
	// Stay is how long a session stays at a server at least; DefaultStay when 0, negative for not at all.
	Stay time.Duration
	// Rate is how many sessions are moved per second at most, all servers together; DefaultRate when 0. A second's worth can go at
	// once.
	Rate int
}

func (c ShedConfig) withDefaults() ShedConfig {
	if c.High == 0 {
		c.High = DefaultHigh
	}
	if c.Low == 0 {
		c.Low = DefaultLow
	}
	for p, v := range map[*time.Duration]time.Duration{&c.Hold: DefaultHold, &c.Settle: DefaultSettle, &c.Stay: DefaultStay} {
		if *p == 0 {
			*p = v
		}
	}
	if c.Rate == 0 {
		c.Rate = DefaultRate
	}
	return c
}

func (c ShedConfig) validate() error {
	if !(c.High > 0 && c.High <= 1) {
		return fmt.Errorf("high: %v: want more than 0, at most 1", c.High)
	}
	if !(c.Low > 0 && c.Low < c.High) {
		return fmt.Errorf("low: %v: want more than 0, and less than high, %v", c.Low, c.High)
	}
	if c.Settle < 0 {
		return fmt.Errorf("settle: %v: want more than 0", c.Settle)
	}
	if c.Rate < 0 {
		return fmt.Errorf("rate: %d: want more than 0", c.Rate)
	}
	return nil
}

// UnknownLoad is that of a server whose reports are missing.
const UnknownLoad = -1

// Server is what a Shedder sees of a server.
type Server struct {
	// Host is the one of heartbeats and load vectors.
	Host uint32
	// Load is its l, 0 to 1; UnknownLoad when it is not known.
	Load float64
	// Takes means that it can be given sessions: it is up, and not drained. Without a known load it gets those of servers that fail only.
	Takes bool
	// Fails is when it will fail, as it has announced (SARA 27): its sessions leave before. Zero: it has not.
	Fails time.Time
	// Sessions are those that it has. Only for servers above ShedConfig.Low, or with Fails, are they looked at.
	Sessions []Session
}

// Session is a user's session at a server.
type Session struct {
	// ID is the caller's.
	ID uint64
	// Weight is what it costs in proportion to the server's other sessions: packets or bytes per second, or 1 for each.
	Weight float64
	// Since is when it came to the server.
	Since time.Time
	// To are the hosts that it can go to: those that serve the same. Any when empty.
	To []uint32
	// Fixed means that it cannot be moved; its weight counts.
	Fixed bool
}

// Move is a session to be moved.
type Move struct {
	Session  uint64
	From, To uint32
	// Share is by how much its server's load is expected to fall.
	Share float64
}
