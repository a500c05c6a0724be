// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"strings"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
)

// Sticky is what connections and sessions stay at one server by.
type Sticky string

// What stickiness goes by.
const (
	StickyNone    Sticky = "none"
	StickyClient  Sticky = "client"  // the client's address, without port
	StickyCookie  Sticky = "cookie"  // a cookie's value; it needs a name
	StickySession Sticky = "session" // a session's identifier: of HTTP it needs a name, and signalling has its own
)

// maxStickyTime and maxStickyKeys bound what a pool remembers.
const (
	maxStickyTime = 7 * 24 * time.Hour
	maxStickyKeys = 1 << 24
)

// StickyBy returns what the pool's connections stick by, and the name of the cookie or session identifier.
func (p *PoolConfig) StickyBy() (by Sticky, name string) {
	word, name, _ := strings.Cut(p.Sticky, " ")
	if word == "" {
		return StickyNone, ""
	}
	return Sticky(word), strings.TrimSpace(name)
}

func (p *PoolConfig) stickiness() balance.StickyConfig {
	return balance.StickyConfig{Time: p.StickyTime, Keys: p.StickyKeys}
}

func (p *PoolConfig) validateSticky() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	by, name := p.StickyBy()
	switch by {
	case StickyNone, StickyClient:
		if name != "" {
			bad("sticky: %q: nothing follows %s", p.Sticky, by)
		}
	case StickyCookie, StickySession:
		if name == "" || strings.ContainsAny(name, " \t:;,=&?/") {
			bad("sticky: %q: want one name after %s", p.Sticky, by)
		}
	default:
		bad("sticky: %q: want %s, %s, %s NAME or %s NAME", p.Sticky, StickyNone, StickyClient, StickyCookie, StickySession)
	}
	switch {
	case by == StickyNone && (p.StickyTime != 0 || p.StickyKeys != 0):
		bad("sticky: missing: sticky_time and sticky_keys say how long it is remembered who went where")
	case by != StickyNone && p.Balance == balance.ConsistentHash:
		bad("sticky: not with balance: %s, which sends equal hashes to one backend by itself", p.Balance)
	}
	if p.StickyTime < 0 || p.StickyTime > maxStickyTime {
		bad("sticky_time: %v: want more than 0, at most %v", p.StickyTime, maxStickyTime)
	}
	if p.StickyKeys < 0 || p.StickyKeys == 1 || p.StickyKeys > maxStickyKeys {
		bad("sticky_keys: %d: want 2 to %d", p.StickyKeys, maxStickyKeys)
	}
	values := map[string]string{}
	for i, b := range p.Backends {
		if b.Cookie != "" && by != StickyCookie && by != StickySession {
			bad("backends[%d]: cookie: only with sticky: %s NAME or %s NAME", i, StickyCookie, StickySession)
		}
		if other, ok := values[b.value()]; ok && b.Cookie != "" {
			bad("backends[%d]: cookie: %q is %s's", i, b.Cookie, other)
		}
		values[b.value()] = b.Name()
	}
	return errs
}

// value is what a cookie has that names the backend.
func (b BackendConfig) value() string {
	if b.Cookie != "" {
		return b.Cookie
	}
	return b.Name()
}

// validateStickyUse says why the service cannot use a pool that sticks so.
func (s ServiceConfig) validateStickyUse(p *PoolConfig) error {
	by, _ := p.StickyBy()
	switch {
	case by == StickyNone:
	case s.Mode.sessions():
		return fmt.Errorf("%s has sticky: %s: in mode %s the service says what sticks", p.Name, by, s.Mode)
	case by == StickyClient || s.Mode == ModeHTTP || s.Mode == ModeH2:
	default:
		return fmt.Errorf("%s sticks by %s, which is not seen in mode %s: want sticky: %s", p.Name, by, s.Mode, StickyClient)
	}
	return nil
}

// validateSticky says what is wrong with the service's own stickiness.
func (s ServiceConfig) validateSticky() error {
	switch {
	case s.Sticky == "":
	case !s.Mode.sessions():
		return fmt.Errorf("not with mode %s, whose pools say it: sticky stands there", s.Mode)
	case s.Sticky == StickyCookie:
		return fmt.Errorf("%q: not in mode %s, which has no cookies: want %s, %s or %s", s.Sticky, s.Mode, StickyNone, StickyClient, StickySession)
	case s.Sticky != StickyClient && s.Sticky != StickyNone && s.Sticky != StickySession:
		return fmt.Errorf("%q: want %s, %s or %s", s.Sticky, StickyNone, StickyClient, StickySession)
	}
	return nil
}

// sticksToClient reports whether new sessions go to the server where their client has one.
func (s ServiceConfig) sticksToClient() bool {
	if s.Sticky != "" {
		return s.Sticky == StickyClient
	}
	return s.Mode == ModeUDP || s.Mode == ModeFTP
}

// sticksToSession reports whether a flow goes to the session that its signalling names.
func (s ServiceConfig) sticksToSession() bool { return s.Sticky != StickyNone }
