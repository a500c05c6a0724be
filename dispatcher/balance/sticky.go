// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Bounds of StickyConfig.
const (
	DefaultStickyTime = 30 * time.Minute
	DefaultStickyKeys = 1 << 17
)

// StickyConfig says how long it is remembered who went where. The zero StickyConfig is 131,072 keys for half an hour.
type StickyConfig struct {
	// Time is how long a key is remembered after its last use, at least; twice that at most. 0 means 30 minutes.
	Time time.Duration
	// Keys bounds the memory: beyond it, the keys that have not been used for longest are forgotten early. Half of them are
	// always kept. 0 means 131,072; a key takes about 100 bytes.
	Keys int
}

func (c StickyConfig) withDefaults() StickyConfig {
	if c.Time == 0 {
		c.Time = DefaultStickyTime
	}
	if c.Keys == 0 {
		c.Keys = DefaultStickyKeys
	}
	return c
}

func (c StickyConfig) validate() error {
	switch {
	case c.Time < 0:
		return fmt.Errorf("sticky time: %v: want more than 0, or 0 for %v", c.Time, DefaultStickyTime)
	case c.Keys < 2:
		return fmt.Errorf("sticky keys: %d: want at least 2, or 0 for %d", c.Keys, DefaultStickyKeys)
	}
	return nil
}

// Sticky sends a key to the backend where it went before, as long as that backend takes connections, and lets another policy choose
// the first time. The key says what sticks: a session (Key of its identifier), a cookie (Key of its value) or a client (KeyAddr).
// A backend that is drained, down or of weight 0 loses its keys to whomever the policy chooses then, for good; so does
// one that has refused the connection.
//
// Unlike ConsistentHash it goes with every policy, leaves keys where they are when a backend comes, and is known to this
// dispatcher alone.
type Sticky struct {
	config StickyConfig

	mu     sync.Mutex
	policy Policy
	// Keys are written to young. When it is half of the bound, or old enough, it becomes old and the former old one is
	// forgotten as a whole: no sweep, no list in order of use.
	young, old map[uint64]string
	since      time.Time // when young was begun
}

// NewSticky returns a Sticky that asks policy about keys it does not know. Errors name the setting.
func NewSticky(policy Policy, config StickyConfig) (*Sticky, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	if policy == nil {
		return nil, errors.New("sticky: no policy: want one that chooses for new keys")
	}
	return &Sticky{config: config, policy: policy, young: make(map[uint64]string)}, nil
}

// Replace puts another policy in the place of the one there is, because the pool's list of backends has changed. What sticks goes
// on to stick: backends are remembered by name.
func (s *Sticky) Replace(policy Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.policy = policy
}

// accountant is a policy that wants to know of sessions that it did not choose for.
type accountant interface {
	account(place int, candidates []Backend)
}

// Choose implements Policy.
func (s *Sticky) Choose(now time.Time, key uint64, candidates []Backend) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turn(now)
	name, known := s.young[key]
	if !known {
		name, known = s.old[key]
	}
	if known {
		if i := place(name, candidates); i >= 0 && candidates[i].takes() {
			s.remember(now, key, name)
			if a, ok := s.policy.(accountant); ok {
				a.account(i, candidates)
			}
			return i
		}
	}
	i := s.policy.Choose(now, key, candidates)
	if i >= 0 {
		s.remember(now, key, candidates[i].Name)
	}
	return i
}

// Forget removes a key, at the end of a session for instance.
func (s *Sticky) Forget(key uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.young, key)
	delete(s.old, key)
}

// Len returns how many keys are remembered.
func (s *Sticky) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.young)
	for key := range s.old {
		if _, twice := s.young[key]; !twice {
			n++
		}
	}
	return n
}

func (s *Sticky) remember(now time.Time, key uint64, name string) {
	if _, ok := s.young[key]; !ok && len(s.young) >= s.config.Keys/2 {
		s.old, s.young, s.since = s.young, make(map[uint64]string, len(s.young)), now
	}
	s.young[key] = name
}

// turn lets a generation pass when its time has come.
func (s *Sticky) turn(now time.Time) {
	if s.since.IsZero() {
		s.since = now
	}
	switch age := now.Sub(s.since); {
	case age < s.config.Time:
	case age < 2*s.config.Time:
		// From when it should have been, so that nothing is kept for more than twice the time.
		s.old, s.young, s.since = s.young, make(map[uint64]string), s.since.Add(s.config.Time)
	default: // nobody came for so long that both are over
		s.old, s.young, s.since = nil, make(map[uint64]string), now
	}
}

func place(name string, candidates []Backend) int {
	for i := range candidates {
		if candidates[i].Name == name {
			return i
		}
	}
	return -1
}
