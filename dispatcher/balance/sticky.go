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

// Visit is what a connection shows of where it belongs.
type Visit struct {
	// Key is what sticks: Key of a session's identifier or of a cookie's value, KeyAddr of a client.
	Key uint64
	// Keyless means that the connection shows no key yet, as one without the cookie that its server will set. It is balanced.
	Keyless bool
	// Client is KeyAddr of the client's address, where something else than the client sticks; 0: clients do not count. A connection
	// without key is remembered by it, and a key that is seen for the first time goes where its client's last such connection
	// went: that is the server that gave the client its cookie, in an answer that does not pass the dispatcher.
	Client uint64
	// Backend is the name of the backend that the connection itself names, by a cookie that a server has set for that; empty: none.
	Backend string
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
	policy Policy
	memory *memory
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
	return &Sticky{config: config, policy: policy, memory: &memory{young: make(map[uint64]string)}}, nil
}

// After makes a Sticky that has not been used yet go on with what another one remembers, because the pool's list of backends, its policy or
// its bounds have changed: backends are remembered by name. Both may be used from then on, and share what they learn.
func (s *Sticky) After(old *Sticky) { s.memory = old.memory }

// accountant is a policy that wants to know of sessions that it did not choose for.
type accountant interface {
	account(place int, candidates []Backend)
}

// Choose implements Policy: a visit that shows no more than a key.
func (s *Sticky) Choose(now time.Time, key uint64, candidates []Backend) int {
	return s.Place(now, Visit{Key: key}, candidates)
}

// Place returns the place among candidates of the backend where the visit belongs, or -1 when none can take it. What the connection names itself
// comes first, then where its key was, then where its client got it.
func (s *Sticky) Place(now time.Time, v Visit, candidates []Backend) int {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	s.memory.turn(now, s.config.Time)
	key := v.Key
	if v.Keyless {
		key = v.Client
	}
	if i := s.known(v, candidates); i >= 0 {
		s.memory.remember(now, key, candidates[i].Name, s.config.Keys)
		if a, ok := s.policy.(accountant); ok {
			a.account(i, candidates)
		}
		return i
	}
	i := s.policy.Choose(now, key, candidates)
	if i >= 0 {
		s.memory.remember(now, key, candidates[i].Name, s.config.Keys)
	}
	return i
}

// known returns the place of the backend where the visit belongs if that takes connections, else -1.
func (s *Sticky) known(v Visit, candidates []Backend) int {
	if i := place(v.Backend, candidates); i >= 0 && candidates[i].takes() {
		return i
	}
	if v.Keyless {
		return -1
	}
	name, known := s.memory.of(v.Key)
	if !known && v.Client != 0 {
		name, known = s.memory.of(v.Client)
	}
	if !known {
		return -1
	}
	if i := place(name, candidates); i >= 0 && candidates[i].takes() {
		return i
	}
	return -1
}

// Forget removes a key, at the end of a session for instance.
func (s *Sticky) Forget(key uint64) {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	delete(s.memory.young, key)
	delete(s.memory.old, key)
}

// Len returns how many keys are remembered.
func (s *Sticky) Len() int {
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	n := len(s.memory.young)
	for key := range s.memory.old {
		if _, twice := s.memory.young[key]; !twice {
			n++
		}
	}
	return n
}

// memory has the names of backends by keys. Keys are written to young. When it is half of the bound, or old enough, it becomes old and the former
// old one is forgotten as a whole: no sweep, no list in order of use.
type memory struct {
	mu         sync.Mutex
	young, old map[uint64]string
	since      time.Time // when young was begun
}

func (m *memory) of(key uint64) (name string, known bool) {
	if name, known = m.young[key]; !known {
		name, known = m.old[key]
	}
	return name, known
}

func (m *memory) remember(now time.Time, key uint64, name string, bound int) {
	if _, ok := m.young[key]; !ok && len(m.young) >= bound/2 {
		m.old, m.young, m.since = m.young, make(map[uint64]string, len(m.young)), now
	}
	m.young[key] = name
}

// turn lets a generation pass when its time has come.
func (m *memory) turn(now time.Time, life time.Duration) {
	if m.since.IsZero() {
		m.since = now
	}
	switch age := now.Sub(m.since); {
	case age < life:
	case age < 2*life:
		// From when it should have been, so that nothing is kept for more than twice the time.
		m.old, m.young, m.since = m.young, make(map[uint64]string), m.since.Add(life)
	default: // nobody came for so long that both are over
		m.old, m.young, m.since = nil, make(map[uint64]string), now
	}
}

func place(name string, candidates []Backend) int {
	if name == "" {
		return -1
	}
	for i := range candidates {
		if candidates[i].Name == name {
			return i
		}
	}
	return -1
}
