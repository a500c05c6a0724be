// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
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
	// since is when state began.
	since time.Time
}

// watched is a host of the plan. The monitor's thread alone changes what is in it; everybody reads.
type watched struct {
	vital  atomic.Pointer[vital]
	series *forecast.Series // the monitor's thread's
}

// management carries out what SARA's engines decide: who is available (24-27), how loaded everybody will be (18-21, 29), and so what is refused
// (12-16). Balancing (22) looks at the same loads.
type management struct {
	d       *Dispatcher
	monitor *monitor.Monitor

	// hosts are those of the plan. The map is replaced with the plan: the monitor's thread must wait for nobody.
	hosts atomic.Pointer[map[uint32]*watched]
	// news are what the log has to say, and unsaid counts what there was no room for. fell says that some host is down.
	news   chan availability.Event
	unsaid atomic.Uint64
	fell   chan struct{}

	policy   admission.Policy // owned by decide
	decision atomic.Pointer[admission.Decision]
	shedder  *shedding
}

func newManagement(d *Dispatcher) (_ *management, err error) {
	m := &management{d: d, news: make(chan availability.Event, newsRoom), fell: make(chan struct{}, 1)}
	m.hosts.Store(&map[uint32]*watched{})
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
	old, hosts := *m.hosts.Load(), make(map[uint32]*watched, len(p.backends))
	for _, b := range p.backends {
		id := uint32(b.node)
		if hosts[id] = old[id]; hosts[id] != nil {
			continue // who comes back is not what it was when it left
		}
		// The error is Config.Validate's, which has seen to it.
		if s, err := forecast.New(m.d.cfg.Forecast.series()); err == nil {
			hosts[id] = &watched{series: s}
			hosts[id].vital.Store(&vital{})
		}
	}
	m.hosts.Store(&hosts)
	m.monitor.SetHosts(slices.Collect(maps.Keys(hosts)))
}

// run works until ctx ends.
func (m *management) run(ctx context.Context) error {
	m.watch(m.d.live.Load())
	m.d.roster.spawn(ctx, m.tell)
	if m.d.sessions != nil {
		m.d.roster.spawn(ctx, m.bury)
	}
	if m.policy != nil {
		m.d.roster.spawn(ctx, m.decide)
	}
	m.d.roster.spawn(ctx, m.shedder.run)
	return m.monitor.Run(ctx)
}

// abandonAfter is how long a host must be down until its sessions are ended. It gets no new ones meanwhile. Silence for three heartbeats of 10 ms may
// also be that of a machine that is busy: then the host is back at once, and nobody must have been cut off.
const abandonAfter = 250 * time.Millisecond

// changed takes in that a host is there, or is not. The monitor's thread calls it, as the next two: they must not wait, for a lock or the log. A thread
// of less priority that has the lock may not run for as long as the monitor's does.
func (m *management) changed(e availability.Event) {
	w := (*m.hosts.Load())[e.Host]
	if w == nil {
		return // it has left the configuration
	}
	v := *w.vital.Load()
	v.state, v.since, v.failsAt, v.silent = e.To, time.Now(), e.FailsAt, e.Silent()
	w.vital.Store(&v)
	select {
	case m.news <- e:
	default:
		m.unsaid.Add(1)
	}
	if e.To == availability.Down {
		select {
		case m.fell <- struct{}{}:
		default: // it has not looked yet
		}
	}
}

// loadChanged takes in that a host's load is not known any more.
func (m *management) loadChanged(e load.Event) {
	w := (*m.hosts.Load())[e.Host]
	if w == nil || !e.Failed {
		return
	}
	v := *w.vital.Load()
	v.known, v.report = false, 0
	w.vital.Store(&v)
	w.series.Reset()
}

// reported takes in a load vector.
func (m *management) reported(host uint32, sample load.Sample) {
	w := (*m.hosts.Load())[host]
	if w == nil {
		return
	}
	e, err := w.series.Observe(sample.Load)
	if err != nil {
		return
	}
	v := *w.vital.Load()
	v.load, v.measured, v.known = e.Value, sample.Load, true
	v.report++
	v.sessions = sample.Vector.Sessions
	w.vital.Store(&v)
}

// newsRoom is how many changes wait for the log.
const newsRoom = 1024

// tell writes to the log what has changed, until ctx ends.
func (m *management) tell(ctx context.Context) error {
	for {
		select {
		case e := <-m.news:
			m.d.log.Info("availability", "backend", m.d.HostOf(gate.Node(e.Host)), "from", e.From, "to", e.To, "cause", e.Cause)
			if n := m.unsaid.Swap(0); n > 0 {
				m.d.log.Warn("the log was too slow for what has changed: the next lines are missing", "changes", n)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// bury ends the sessions of hosts that are down for abandonAfter, until ctx ends and none is waited for.
func (m *management) bury(ctx context.Context) error {
	buried := make(map[*watched]time.Time) // those whose sessions have been ended, and since when they were down
	for {
		next := m.abandon(time.Now(), buried)
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		} else if ctx.Err() != nil {
			return nil
		}
		ended := ctx.Done()
		if next > 0 {
			ended = nil // the dispatcher does not end before it has
		}
		select {
		case <-m.fell:
		case <-due:
		case <-ended:
		}
	}
}

// abandon ends the sessions of hosts that have been down for long enough, and returns in what time the next one has; 0: no other is down.
func (m *management) abandon(now time.Time, buried map[*watched]time.Time) (next time.Duration) {
	hosts := *m.hosts.Load()
	for id, w := range hosts {
		v := w.vital.Load()
		if v.state != availability.Down || buried[w].Equal(v.since) {
			continue
		}
		if left := v.since.Add(abandonAfter).Sub(now); left > 0 {
			if next == 0 || left < next {
				next = left
			}
			continue
		}
		buried[w] = v.since
		m.d.sessions.abandon(gate.Node(id))
	}
	maps.DeleteFunc(buried, func(w *watched, _ time.Time) bool { return w.vital.Load().state != availability.Down })
	return next
}

// of returns what is known of a host.
func (m *management) of(n gate.Node) vital {
	if w := (*m.hosts.Load())[uint32(n)]; w != nil {
		return *w.vital.Load()
	}
	return vital{}
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
