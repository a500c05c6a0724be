// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Target is what is probed.
type Target struct {
	// Name is unique among the targets: what it is to the caller.
	Name string
	// Address is asked: the virtual address, or the backend's own.
	Address netip.AddrPort
	// Dial reaches the backend: Path.To, or nil for an ordinary connection to Address.
	Dial   Dialer
	Prober Prober
	// Check is how its probes count.
	Check CheckConfig
}

// Change says that a target's state has changed.
type Change struct {
	Target   string
	From, To State
	// Err is the last probe's; nil when it succeeded.
	Err error
}

// CheckerConfig says who hears of changes. The zero value works.
type CheckerConfig struct {
	// Changed is told of every change. It is called by several goroutines, for a target by one at a time. nil: nobody is told.
	Changed func(Change)
	// Logger gets changes; nil: nothing.
	Logger *slog.Logger
}

// Checker probes targets. Its methods are safe for concurrent use.
type Checker struct {
	cfg CheckerConfig

	mu      sync.Mutex
	watches map[string]*watch
	running context.Context // Run's; nil when it does not run
	group   sync.WaitGroup
}

// watch is one target at work.
type watch struct {
	target Target
	cancel context.CancelFunc // nil when it does not run

	mu    sync.Mutex
	check *Check
	err   error
}

// NewChecker returns a checker of nothing.
func NewChecker(config CheckerConfig) *Checker {
	if config.Changed == nil {
		config.Changed = func(Change) {}
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Checker{cfg: config, watches: make(map[string]*watch)}
}

// SetTargets replaces the targets. One that was there under the same name goes on with its state, and with the new address, prober and
// dialer. An error, which names what is wrong, means that nothing has changed.
func (c *Checker) SetTargets(targets []Target) error {
	next := make(map[string]*watch, len(targets))
	for _, t := range targets {
		if t.Dial == nil {
			t.Dial = (&net.Dialer{}).DialContext
		}
		check, err := NewCheck(t.Check, time.Now(), rand.Float64())
		switch {
		case err != nil:
			return fmt.Errorf("check of %s: %w", t.Name, err)
		case t.Prober == nil || !t.Address.IsValid() && t.Address.Port() == 0:
			return fmt.Errorf("check of %s: prober and address are needed", t.Name)
		case next[t.Name] != nil:
			return fmt.Errorf("check of %s: the name stands twice", t.Name)
		}
		next[t.Name] = &watch{target: t, check: check}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, w := range c.watches {
		if n := next[name]; n != nil {
			w.mu.Lock()
			n.check.state, n.err = w.check.state, w.err
			w.mu.Unlock()
		}
		if w.cancel != nil {
			w.cancel()
		}
	}
	c.watches = next
	if c.running != nil {
		for _, w := range next {
			c.start(w)
		}
	}
	return nil
}

// State tells of a target, and why its last probe failed; Unknown when there is no such target, or no probe has ended yet.
func (c *Checker) State(name string) (State, error) {
	c.mu.Lock()
	w := c.watches[name]
	c.mu.Unlock()
	if w == nil {
		return Unknown, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.check.State(), w.err
}

// Run probes until ctx ends; call it once.
func (c *Checker) Run(ctx context.Context) error {
	c.mu.Lock()
	c.running = ctx
	for _, w := range c.watches {
		c.start(w)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.running = nil
	c.mu.Unlock()
	c.group.Wait()
	return nil
}

// start begins to watch a target. The caller holds mu.
func (c *Checker) start(w *watch) {
	ctx, cancel := context.WithCancel(c.running)
	w.cancel = cancel
	c.group.Go(func() {
		defer cancel()
		for {
			w.mu.Lock()
			due := w.check.Due()
			w.mu.Unlock()
			t := time.NewTimer(time.Until(due))
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			c.probe(ctx, w)
		}
	})
}

// errTimeout is a probe that was not answered in time.
var errTimeout = errors.New("no answer in time")

// probe asks once, and counts the answer unless the target is none any more.
func (c *Checker) probe(ctx context.Context, w *watch) {
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, w.check.Timeout())
	err := w.target.Prober.Probe(limited, w.target.Dial, w.target.Address)
	if err != nil && limited.Err() != nil {
		err = fmt.Errorf("%w: %w", errTimeout, err)
	}
	cancel()
	if ctx.Err() != nil {
		return
	}
	w.mu.Lock()
	was := w.check.State()
	changed := w.check.Result(began, err == nil, rand.Float64())
	w.err = err
	change := Change{Target: w.target.Name, From: was, To: w.check.State(), Err: err}
	w.mu.Unlock()
	if changed {
		c.cfg.Logger.Info("health", "target", change.Target, "from", change.From.String(), "to", change.To.String(), "error", change.Err)
		c.cfg.Changed(change)
	}
}
