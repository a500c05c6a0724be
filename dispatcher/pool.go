// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/handoff/wire"
)

// Chooser chooses the backend of a pool that gets a connection: package balance's policies, or an engine that knows more.
type Chooser interface {
	// Choose returns the place of a backend among candidates, or -1 when none can take the connection.
	Choose(now time.Time, key uint64, candidates []balance.Backend) int
}

// pool is a configured pool at work. It does not change but for what operators set; a reload makes new ones.
type pool struct {
	cfg      PoolConfig
	delivery wire.Delivery
	choose   Chooser
	sticky   *balance.Sticky // in front of choose; nil: nothing sticks
	members  []*member
	nodes    []uint32  // of its hosts
	scratch  sync.Pool // of *[]balance.Backend
}

// member is one backend of a pool.
type member struct {
	name   string // unique in the pool
	socket string
	host   *backend

	// configured is the weight that the configuration gives it, and weight the one that counts.
	configured int
	// injected is set when its connections are made by its host's kernel, out of handoffs.
	injected bool
	// condition is nil unless the pool has checks.
	condition *condition

	mu      sync.Mutex
	weight  int
	drained bool
	since   time.Time
	// slowStart is what an operator wants of the slow start that began at since; 0: the pool's.
	slowStart time.Duration
	usual     time.Duration // the pool's
}

func newPool(cfg PoolConfig, hosts map[string]*backend) (*pool, error) {
	choose, err := balance.New(balance.Config{Kind: cfg.Balance, SlowStart: cfg.SlowStart})
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", cfg.Name, err)
	}
	p := &pool{cfg: cfg, choose: choose, delivery: wire.DeliverLinked}
	if by, _ := cfg.StickyBy(); by != StickyNone {
		if p.sticky, err = balance.NewSticky(choose, cfg.stickiness()); err != nil {
			return nil, fmt.Errorf("pool %s: %w", cfg.Name, err)
		}
	}
	switch cfg.Delivery {
	case DeliveryFD:
		p.delivery = wire.DeliverDescriptor
	case DeliveryUnmodified:
		p.delivery = wire.DeliverUnmodified
	}
	for _, b := range cfg.Backends {
		host := hosts[b.Host]
		if host == nil {
			return nil, fmt.Errorf("pool %s: %q is no peer", cfg.Name, b.Host)
		}
		p.members = append(p.members, &member{name: b.Name(), socket: b.Socket, host: host, configured: *b.Weight, weight: *b.Weight, usual: cfg.SlowStart})
	}
	for _, m := range p.members {
		if n := uint32(m.host.node); !slices.Contains(p.nodes, n) {
			p.nodes = append(p.nodes, n)
		}
	}
	p.scratch.New = func() any {
		s := make([]balance.Backend, 0, len(p.members))
		return &s
	}
	return p, nil
}

// inherit takes over what an operator has set at run time, and who went where. A weight that has changed in the configuration is the newer wish.
func (p *pool) inherit(old *pool) {
	if p.sticky != nil && old.sticky != nil && p.cfg.Sticky == old.cfg.Sticky {
		p.sticky.After(old.sticky)
	}
	for _, m := range p.members {
		i := slices.IndexFunc(old.members, func(o *member) bool { return o.name == m.name })
		if i < 0 {
			m.since = time.Now() // it starts slowly
			continue
		}
		o := old.members[i]
		if m.condition != nil && o.condition != nil {
			m.condition = o.condition
		}
		o.mu.Lock()
		m.drained, m.since, m.slowStart = o.drained, o.since, o.slowStart
		if m.configured == o.configured {
			m.weight = o.weight
		}
		o.mu.Unlock()
	}
}

// member returns the backend that gets a connection, or nil; tried are those that have failed to take it. When nobody else is left, a host whose
// heartbeats are missing is better than none, as long as its agent is there: on a busy machine it may be late, and a client need not suffer for that.
func (p *pool) member(now time.Time, v balance.Visit, tried []*member) *member {
	if m := p.memberOf(now, v, tried, false); m != nil {
		return m
	}
	return p.memberOf(now, v, tried, true)
}

func (p *pool) memberOf(now time.Time, v balance.Visit, tried []*member, mercy bool) *member {
	buffer, _ := p.scratch.Get().(*[]balance.Backend)
	defer p.scratch.Put(buffer)
	candidates := (*buffer)[:0]
	for _, m := range p.members {
		candidates = append(candidates, m.viewed(tried, mercy))
	}
	*buffer = candidates
	var i int
	if p.sticky != nil {
		i = p.sticky.Place(now, v, candidates)
	} else {
		i = p.choose.Choose(now, v.Key, candidates)
	}
	if i < 0 {
		return nil
	}
	return p.members[i]
}

// view is what a policy sees of the backend. viewed with mercy leaves out that it is silent.
func (m *member) view(tried []*member) balance.Backend { return m.viewed(tried, false) }

func (m *member) viewed(tried []*member, mercy bool) balance.Backend {
	m.mu.Lock()
	b := balance.Backend{Name: m.name, Weight: m.weight, Since: m.since, SlowStart: m.slowStart, Drained: m.drained}
	m.mu.Unlock()
	b.Active = int(m.host.active.Load())
	b.Drained = b.Drained || m.host.draining.Load()
	b.Down = !m.host.up() || m.condition.ill() || m.unable() != ""
	if g := m.host.management; g != nil {
		g.judge(m.host, &b, mercy)
	}
	b.Tried = slices.Contains(tried, m)
	return b
}

// unable is why its host cannot make its connections; empty when it can, or need not.
func (m *member) unable() string {
	if why := m.host.unable.Load(); why != nil && m.injected {
		return *why
	}
	return ""
}

// set changes what an operator may change at run time; nil leaves a value as it is.
func (m *member) set(weight *int, drained *bool, slowStart *time.Duration, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if weight != nil {
		m.weight = *weight
	}
	if drained != nil {
		if m.drained && !*drained {
			m.since, m.slowStart = now, 0
		}
		m.drained = *drained
	}
	if slowStart != nil {
		if m.since, m.slowStart = now, *slowStart; *slowStart == 0 {
			m.since = time.Time{}
		}
	}
}

// starting returns how long the slow start still takes. It is called with mu held.
func (m *member) starting(now time.Time) time.Duration {
	length := m.usual
	if m.slowStart > 0 {
		length = m.slowStart
	}
	if m.since.IsZero() {
		return 0
	}
	return max(0, length-now.Sub(m.since))
}
