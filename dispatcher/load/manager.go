// SPDX-License-Identifier: Apache-2.0

package load

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// Defaults.
const (
	DefaultInterval = 200 * time.Millisecond
	DefaultMisses   = 3
)

// Config says how load vectors are read. The zero value works.
type Config struct {
	// Weights say how much each part of a vector counts towards l; all fully when nothing is set. See vitals.Vector.Load.
	Weights vitals.Weights
	// Misses is for how many intervals a host's vectors may fail to come before its monitor counts as failed (SARA 29); DefaultMisses
	// when 0. The interval is the one that the host's last vector states.
	Misses int
	// Interval is the one of hosts that have not sent any vector yet; DefaultInterval when 0.
	Interval time.Duration
}

func (c Config) withDefaults() Config {
	if c.Weights == (vitals.Weights{}) {
		c.Weights = vitals.EvenWeights()
	}
	if c.Misses == 0 {
		c.Misses = DefaultMisses
	}
	if c.Interval == 0 {
		c.Interval = DefaultInterval
	}
	return c
}

func (c Config) validate() error {
	for p, w := range c.Weights {
		if !(w >= 0 && w <= 1) {
			return fmt.Errorf("weight of %v: %v: want 0 to 1", vitals.Part(p), w)
		}
	}
	if c.Misses < 1 {
		return fmt.Errorf("misses: %d: want 1 or more", c.Misses)
	}
	if c.Interval < time.Millisecond || c.Interval > vitals.MaxInterval {
		return fmt.Errorf("interval: %v: want 1ms to %v", c.Interval, vitals.MaxInterval)
	}
	return nil
}

// Event says that a host's monitor has failed, or has come back: its load is not known, or known again. The host itself may be well.
type Event struct {
	Host   uint32
	Failed bool
	// At is when the silence had lasted, or when the vector arrived.
	At time.Time
}

// Sample is a host's load at a time.
type Sample struct {
	// At is when the vector arrived.
	At time.Time
	// Load is l, 0 to 1.
	Load   float64
	Vector vitals.Vector
}

// Manager is the manager's side of SARA's load management engine (figure 8). It is for one goroutine.
type Manager struct {
	cfg   Config
	hosts map[uint32]*monitor
}

// monitor is what is known of one host.
type monitor struct {
	last     Sample
	known    bool // last is one, and has a load
	failed   bool
	deadline time.Time
}

// NewManager returns a manager of no hosts, or an error that says what is wrong with the configuration.
func NewManager(config Config) (*Manager, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Manager{cfg: config, hosts: make(map[uint32]*monitor)}, nil
}

// Add makes a host known; one that is known stays as it is.
func (m *Manager) Add(now time.Time, host uint32) {
	if m.hosts[host] == nil {
		m.hosts[host] = &monitor{deadline: now.Add(m.silence(m.cfg.Interval))}
	}
}

// Remove forgets a host.
func (m *Manager) Remove(host uint32) { delete(m.hosts, host) }

// interval is the one that a host's last vector stated.
func (m *Manager) interval(h *monitor) time.Duration {
	if h.last.Vector.Interval > 0 {
		return h.last.Vector.Interval
	}
	return m.cfg.Interval
}

func (m *Manager) silence(interval time.Duration) time.Duration {
	return time.Duration(m.cfg.Misses) * interval
}

// Report takes a vector that has been found genuine, and returns what it changes. Vectors of hosts that are not known, and those that a
// later one has overtaken, change nothing.
func (m *Manager) Report(at time.Time, v vitals.Vector) []Event {
	h := m.hosts[v.Host]
	if h == nil {
		return nil
	}
	if step := v.Seq - h.last.Vector.Seq; h.known && !h.failed && step >= 1<<15 {
		// Behind the last one: overtaken, or the first of a sender that has started again. The next one tells: taken as the
		// new place to count from, but not as the host's load.
		h.last.Vector.Seq = v.Seq
		return nil
	}
	l, ok := v.Load(m.cfg.Weights)
	h.last, h.known = Sample{At: at, Load: l, Vector: v}, ok
	h.deadline = at.Add(m.silence(v.Interval))
	if h.failed {
		h.failed = false
		return []Event{{Host: v.Host, At: at}}
	}
	return nil
}

// Tick returns the hosts whose monitors have failed since it was last called. Vectors that arrived before now must have been passed to
// Report.
func (m *Manager) Tick(now time.Time) []Event {
	var events []Event
	for id, h := range m.hosts {
		if !h.failed && !now.Before(h.deadline) {
			h.failed = true
			events = append(events, Event{Host: id, Failed: true, At: h.deadline})
		}
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Host, b.Host)) })
	return events
}

// Blind says that the caller was not running for some time; see availability.Detector.Blind.
func (m *Manager) Blind(from, to time.Time) {
	for _, h := range m.hosts {
		since := from
		if h.last.At.After(from) {
			since = h.last.At
		}
		last := to.Add(m.interval(h))
		if until := h.deadline.Add(to.Sub(since)); until.Before(last) {
			last = until
		}
		if last.After(h.deadline) {
			h.deadline = last
		}
	}
}

// Deadline returns when Tick will next have something to say, if nothing arrives; zero for never.
func (m *Manager) Deadline() (next time.Time) {
	for _, h := range m.hosts {
		if !h.failed && (next.IsZero() || h.deadline.Before(next)) {
			next = h.deadline
		}
	}
	return next
}

// Load returns a host's l; ok is false when it is not known: no vector yet, none that says anything, or its monitor has failed.
func (m *Manager) Load(host uint32) (l float64, ok bool) {
	s, ok := m.Sample(host)
	return s.Load, ok
}

// Sample returns a host's newest vector, under the same conditions as Load.
func (m *Manager) Sample(host uint32) (s Sample, ok bool) {
	h := m.hosts[host]
	if h == nil || !h.known || h.failed {
		return Sample{}, false
	}
	return h.last, true
}

// Hosts returns the hosts that are known, in the order of their numbers.
func (m *Manager) Hosts() []uint32 { return slices.Sorted(maps.Keys(m.hosts)) }
