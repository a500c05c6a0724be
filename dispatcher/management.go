// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forecast"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/dispatcher/monitor"
	"github.com/rehome-net/rehome/handoff/gate"
)

// vital is what a backend's reports say of it. The zero value: nothing.
type vital struct {
	state availability.State
	// failsAt is, of a host that is draining, when it will fail, as it said at first.
	failsAt time.Time
	// silent means that it is down, and has not said so.
	silent bool
	// load is eq. 8's value of SARA, and measured what the last report said, known while reports come; report numbers the report.
	load, measured float64
	known          bool
	report         uint64
	// sessions are how many connections it says that it serves.
	sessions uint32
}

// management carries out what SARA's engines decide: who is available (24-27), how loaded everybody will be (18-21, 29), and so what is refused
// (12-16). Balancing (22) looks at the same loads.
type management struct {
	d       *Dispatcher
	monitor *monitor.Monitor

	mu     sync.Mutex
	series map[uint32]*forecast.Series
	vitals map[uint32]vital

	policy   admission.Policy // owned by decide
	decision atomic.Pointer[admission.Decision]
	shedder  *shedding
}

func newManagement(d *Dispatcher) (_ *management, err error) {
	m := &management{d: d, series: make(map[uint32]*forecast.Series), vitals: make(map[uint32]vital)}
	m.decision.Store(&admission.Decision{})
	if d.cfg.Admission.Policy != "" {
		if m.policy, err = admission.New(d.cfg.Admission.policy()); err != nil {
			return nil, err
		}
	}
	keys, err := d.cfg.Reports.keys()
	if err != nil {
		return nil, err
	}
	m.monitor, err = monitor.Open(monitor.Config{
		Listen: d.cfg.Reports.Listen, Keys: keys, Availability: d.cfg.Reports.availability(), Load: d.cfg.Reports.load(),
		Changed: m.changed, LoadChanged: m.loadChanged, Reported: m.reported, Logger: d.log,
	})
	if err != nil {
		return nil, fmt.Errorf("reports: %w", err)
	}
	m.shedder, err = newShedding(d, m)
	return m, err
}

// watch has the hosts of a plan watched.
func (m *management) watch(p *plan) {
	ids := make([]uint32, 0, len(p.backends))
	for _, b := range p.backends {
		ids = append(ids, uint32(b.node))
	}
	m.mu.Lock()
	for id := range m.vitals { // who comes back must not be what it was when it left
		if !slices.Contains(ids, id) {
			delete(m.vitals, id)
			delete(m.series, id)
		}
	}
	m.mu.Unlock()
	m.monitor.SetHosts(ids)
}

// run works until ctx ends.
func (m *management) run(ctx context.Context) error {
	m.watch(m.d.live.Load())
	if m.policy != nil {
		m.d.roster.spawn(ctx, m.decide)
	}
	m.d.roster.spawn(ctx, m.shedder.run)
	return m.monitor.Run(ctx)
}

// abandonAfter is how long a host must be down until its sessions are ended. It gets no new ones meanwhile. Silence for three heartbeats of 10 ms may
// also be that of a machine that is busy: then the host is back at once, and nobody must have been cut off.
const abandonAfter = 250 * time.Millisecond

// changed takes in that a host is there, or is not. The monitor's thread calls it.
func (m *management) changed(e availability.Event) {
	m.mu.Lock()
	v := m.vitals[e.Host]
	v.state, v.failsAt, v.silent = e.To, e.FailsAt, e.Silent()
	m.vitals[e.Host] = v
	m.mu.Unlock()
	m.d.log.Info("availability", "backend", m.d.HostOf(gate.Node(e.Host)), "from", e.From, "to", e.To, "cause", e.Cause)
	if e.To == availability.Down && m.d.sessions != nil {
		// Not on this thread, which must not wait; and the dispatcher does not end before it has.
		m.d.roster.spawn(context.Background(), func(ctx context.Context) error {
			wait(ctx, abandonAfter)
			if m.of(gate.Node(e.Host)).state == availability.Down {
				m.d.sessions.abandon(gate.Node(e.Host))
			}
			return nil
		})
	}
}

// loadChanged takes in that a host's load is not known any more.
func (m *management) loadChanged(e load.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.monitor.Host(e.Host); !ok || !e.Failed {
		return
	}
	v := m.vitals[e.Host]
	v.known, v.report = false, 0
	m.vitals[e.Host] = v
	if s := m.series[e.Host]; s != nil {
		s.Reset()
	}
}

// reported takes in a load vector.
func (m *management) reported(host uint32, sample load.Sample) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[host]
	if s == nil {
		var err error
		if s, err = forecast.New(m.d.cfg.Forecast.series()); err != nil {
			return // Config.Validate has seen to it
		}
		m.series[host] = s
	}
	e, err := s.Observe(sample.Load)
	if err != nil {
		return
	}
	v := m.vitals[host]
	v.load, v.measured, v.known = e.Value, sample.Load, true
	v.report++
	v.sessions = sample.Vector.Sessions
	m.vitals[host] = v
}

// of returns what is known of a host.
func (m *management) of(n gate.Node) vital {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vitals[uint32(n)]
}

// fails is when a host will fail, as it has announced; zero when it has not, or has already.
func (m *management) fails(n gate.Node) time.Time {
	v := m.of(n)
	if v.state != availability.Draining {
		return time.Time{}
	}
	if h, ok := m.monitor.Host(uint32(n)); ok && h.Status.State == availability.Draining {
		return h.Status.FailsAt // it may have changed its mind about when
	}
	return v.failsAt
}

// tablePressure is the share of the flow table from which on new flows find no room (package forward).
const tablePressure = 0.84

// loads are what admission goes by. The head's own load is that of the one thing that it can run out of, its flow table: packets cost it little.
func (m *management) loads() admission.Loads {
	l := admission.Loads{Head: m.d.stats().Pressure / tablePressure}
	for _, b := range m.d.live.Load().backends {
		if v := m.of(b.node); v.known && v.state.Serves() {
			l.Nodes = append(l.Nodes, v.load)
		}
	}
	return l
}

// minDecision bounds how often decisions are made.
const minDecision = 10 * time.Millisecond

// decide decides again and again what is refused.
func (m *management) decide(ctx context.Context) error {
	for ctx.Err() == nil {
		next := m.policy.Update(m.loads())
		if last := m.decision.Swap(&next); last.State != next.State {
			m.d.log.Info("admission", "from", last.State, "to", next.State, "load", next.Load, "new", next.New, "established", next.Established)
		}
		m.d.count.decisions.WithLabelValues(next.State.String()).Inc() // before anything is refused
		m.enforce(next)
		wait(ctx, max(next.Next, minDecision))
	}
	m.enforce(admission.Decision{}) // nobody decides any more
	return nil
}

// admitter is a packet path that can refuse. What it was told stays until it is told otherwise, also when the process has ended.
type admitter interface {
	SetAdmission(protocol uint8, at netip.AddrPort, a forward.Admission) error
}

// enforce has the packet path refuse what was decided.
func (m *management) enforce(a admission.Decision) {
	if path := m.d.admitter(); path != nil {
		m.d.enforce(path, a)
	}
}

// admitter returns the packet path if it can refuse, else nil.
func (d *Dispatcher) admitter() admitter {
	switch path := d.path.(type) {
	case *kernelPath:
		if path.bpf == nil {
			return nil
		}
		return sessionForwarder{path.bpf}
	case admitter:
		return path
	}
	return nil
}

// enforce has a packet path refuse. Where clients are told so, their connections are refused later (management.admit), and the path lets them
// in, whatever it did before a reload or a restart.
func (d *Dispatcher) enforce(path admitter, a admission.Decision) {
	set := func(protocol uint8, at netip.AddrPort, f forward.Admission) {
		if err := path.SetAdmission(protocol, at, f); err != nil {
			d.log.Warn("the packet path does not refuse what admission wants", "address", at, "error", err)
		}
	}
	live := d.live.Load()
	for e := range live.sessions {
		set(e.protocol, e.at, forward.Admission{New: a.New, Established: a.Established})
	}
	for at, s := range live.at {
		switch {
		case s.cfg.Socketless: // no service of the path's
		case d.tells(s):
			set(unix.IPPROTO_TCP, at, forward.Admission{})
		default:
			set(unix.IPPROTO_TCP, at, forward.Admission{New: a.New})
		}
	}
}

// tells reports whether refused clients of a service are told.
func (d *Dispatcher) tells(s *service) bool {
	return d.cfg.Admission.RetryAfter > 0 && (s.cfg.Mode == ModeHTTP || s.cfg.Mode == ModeH2)
}

// admit reports whether a connection whose request has been read is taken.
func (m *management) admit(s *service) bool {
	if !m.d.tells(s) && !s.cfg.Socketless {
		return true // its SYN was
	}
	return !admission.ShareOf(m.decision.Load().New).Refuses(rand.Uint32())
}

// judge adds to what a policy sees of a backend what its reports say. With mercy a host that is merely silent is not down.
func (m *management) judge(host *backend, b *balance.Backend, mercy bool) {
	v := m.of(host.node)
	switch v.state {
	case availability.Down, availability.ApplicationDown:
		b.Down = b.Down || !mercy || !v.silent
	case availability.Draining:
		b.Drained = true
	case availability.Unknown, availability.Up: // its agent's link counts
	}
	if v.known {
		b.Load, b.Report = v.load, v.report
	}
	if most := m.bound(); most > 0 && b.Active >= most {
		b.Drained = true
	}
}

// bound returns how many connections each backend may have; 0: there is no bound.
func (m *management) bound() int { return m.decision.Load().Connections }
