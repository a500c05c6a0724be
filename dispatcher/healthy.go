// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher/health"
)

// condition is what the checks say of a backend of a pool. It outlives the plans that have the backend.
type condition struct {
	name  string // the target's
	state atomic.Uint32
	// checker knows why.
	checker *health.Checker
}

func (c *condition) get() health.State { return health.State(c.state.Load()) }

// ill reports whether the backend is to get no connections; nil is not checked, and of whom nothing is known yet counts as well.
func (c *condition) ill() bool { return c != nil && c.get() == health.Down }

// examine has the pool's members checked, if it is configured so.
func (p *pool) examine(checker *health.Checker) {
	if p.cfg.Health == nil {
		return
	}
	for _, m := range p.members {
		m.condition = &condition{name: p.cfg.Name + "/" + m.name, checker: checker}
	}
}

// restart has the member start slowly.
func (m *member) restart(now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since = now
}

// words returns the state, and why the last probe failed.
func (c *condition) words() (state, cause string) {
	if _, err := c.checker.State(c.name); err != nil {
		cause = err.Error()
	}
	return c.get().String(), cause
}

// checks asks backends whether they serve (package health).
type checks struct {
	d       *Dispatcher
	checker *health.Checker
	path    *health.Path // nil: there is no way for the virtual addresses

	mu    sync.Mutex
	known map[string]*member // the live plan's, by their targets' names
}

func newChecks(d *Dispatcher) *checks {
	c := &checks{d: d}
	c.checker = health.NewChecker(health.CheckerConfig{Changed: c.changed, Logger: d.log})
	return c
}

// open makes the way for the virtual addresses, if the configuration has one.
func (c *checks) open(cfg ChecksConfig) (err error) {
	if len(cfg.Addresses) == 0 {
		return nil
	}
	if c.path, err = health.OpenPath(cfg.path()); err != nil {
		return fmt.Errorf("checks: %w: without checks.addresses, and with through: %s, pools' checks need none", err, ThroughAddress)
	}
	return nil
}

func (c *checks) close() error {
	if c.path == nil {
		return nil
	}
	return c.path.Close()
}

// targets returns what a plan wants to be asked. It does all of watch that can fail.
func (c *checks) targets(p *plan) ([]health.Target, error) {
	var all []health.Target
	for i := range p.cfg.Pools {
		cfg := &p.cfg.Pools[i]
		if cfg.Health == nil {
			continue
		}
		prober, err := health.NewProber(cfg.Health.probe())
		if err != nil {
			return nil, fmt.Errorf("pool %s: health: %w", cfg.Name, err)
		}
		for _, m := range p.pools[cfg.Name].members {
			t := health.Target{Name: m.condition.name, Prober: prober, Check: cfg.Health.check()}
			own := p.peers[m.host.name].IP()
			if t.Address, err = p.cfg.checkedAt(cfg, own); err == nil && cfg.Health.Through == ThroughVIP {
				t.Dial, err = c.way(own)
			}
			if err != nil {
				return nil, fmt.Errorf("pool %s: health: backend %s: %w", cfg.Name, m.name, err)
			}
			all = append(all, t)
		}
	}
	return all, nil
}

// errNoPath does not happen with a validated configuration.
var errNoPath = errors.New("through: vip: there is no path for checks: give checks.addresses")

// way returns the dialer that reaches a backend for the virtual addresses.
func (c *checks) way(backend netip.Addr) (health.Dialer, error) {
	if c.path == nil {
		return nil, errNoPath
	}
	return c.path.To(backend)
}

// watch has the backends of a plan asked. The plan is at work already.
func (c *checks) watch(p *plan) {
	known := make(map[string]*member)
	for _, o := range p.pools {
		for _, m := range o.members {
			if m.condition != nil {
				known[m.condition.name] = m
			}
		}
	}
	c.mu.Lock()
	c.known = known
	c.mu.Unlock()
	if err := c.checker.SetTargets(p.targets); err != nil { // the configuration is valid
		c.d.log.Error("backends are checked as before", "error", err)
	}
}

// run asks until ctx ends.
func (c *checks) run(ctx context.Context) error {
	c.watch(c.d.live.Load())
	return c.checker.Run(ctx)
}

// changed takes in what a check has found. Two calls may overtake each other when targets are replaced meanwhile, so the checker's word counts.
func (c *checks) changed(e health.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.known[e.Target]
	if m == nil {
		return // it is none any more
	}
	now, _ := c.checker.State(e.Target)
	if was := health.State(m.condition.state.Swap(uint32(now))); was == health.Down && now == health.Up {
		m.restart(time.Now())
	}
}
