// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"time"
)

// Limits of what may be configured.
const (
	// MinTimeout and MaxTimeout bound every timeout. SARA 11 has 10 s to 60 s. The connections of TCP may be given more: their end
	// is reported, and a client may be silent on one for hours.
	MinTimeout = 10 * time.Second
	MaxTimeout = 24 * time.Hour

	// MaxFlows is the most that Config.MaxFlows may be.
	MaxFlows = maxRecords

	maxPerSession = 4096
)

// Config says how much a table holds. The zero Config works.
type Config struct {
	// MaxFlows bounds the flows of all sessions, announced ones too. 0 means 1,048,576, which take up to 200 MiB.
	MaxFlows int
	// MaxPerClient bounds the flows of all sessions that one client has opened. 0 means 4096, enough for a company behind one
	// address; a telephone provider's trunk may need more.
	MaxPerClient int
	// MaxAnnounced bounds the announced and secondary flows of one session, MaxSignalling its signalling flows and MaxNames its
	// names. 0 means 64, at most 4096.
	MaxAnnounced, MaxSignalling, MaxNames int
	// Timeouts are those of sessions whose Terms have none.
	Timeouts Timeouts
}

// Timeouts say after which silence a session's flows are inactive; after twice of it they may be removed (SARA 11).
type Timeouts struct {
	// Signalling is for the flows on which the client asks. 0 means 60 s.
	Signalling time.Duration
	// Media is for announced and secondary flows. 0 means 30 s.
	Media time.Duration
	// Apart lets announced and secondary flows go at twice their own timeout, even while other flows of their session are in use. It is
	// for signalling that carries many users' dialogs, such as a SIP trunk: what a lost BYE leaves behind would stay otherwise.
	Apart bool
}

// Terms are what a session is opened with.
type Terms struct {
	Server Server
	// Timeouts are used where they are not zero, in place of Config.Timeouts.
	Timeouts Timeouts
}

// Server is a server's number; what it stands for, the caller knows.
type Server uint32

func (c Config) withDefaults() Config {
	for field, fallback := range map[*int]int{
		&c.MaxFlows: 1 << 20, &c.MaxPerClient: 4096, &c.MaxAnnounced: 64, &c.MaxSignalling: 64, &c.MaxNames: 64,
	} {
		if *field == 0 {
			*field = fallback
		}
	}
	c.Timeouts = c.Timeouts.or(Timeouts{Signalling: 60 * time.Second, Media: 30 * time.Second})
	return c
}

func (c Config) validate() error {
	for _, f := range []struct {
		name       string
		value, max int
	}{
		{"MaxFlows", c.MaxFlows, MaxFlows},
		{"MaxPerClient", c.MaxPerClient, MaxFlows},
		{"MaxAnnounced", c.MaxAnnounced, maxPerSession},
		{"MaxSignalling", c.MaxSignalling, maxPerSession},
		{"MaxNames", c.MaxNames, maxPerSession},
	} {
		if f.value < 0 || f.value > f.max {
			return fmt.Errorf("%s %d: want 0 to %d", f.name, f.value, f.max)
		}
	}
	return c.Timeouts.validate()
}

// or fills what is zero from fallback.
func (t Timeouts) or(fallback Timeouts) Timeouts {
	if t.Signalling == 0 {
		t.Signalling = fallback.Signalling
	}
	if t.Media == 0 {
		t.Media = fallback.Media
	}
	t.Apart = t.Apart || fallback.Apart
	return t
}

// validate accepts zero, which means the default.
func (t Timeouts) validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"signalling", t.Signalling}, {"media", t.Media}} {
		if f.value != 0 && (f.value < MinTimeout || f.value > MaxTimeout) {
			return fmt.Errorf("%s timeout %v: %w of %v to %v", f.name, f.value, ErrTimeout, MinTimeout, MaxTimeout)
		}
	}
	return nil
}
