// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/entry"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/tcprepair"
)

// Path is the packet path's flow table: who owns a flow, and so where its packets go.
type Path interface {
	entry.Flows
	neighbour.Nodes
	SetService(vip netip.AddrPort, nodes []gate.Node) error
	RemoveService(vip netip.AddrPort) error
	// Grant is Commit for an owner that may not have the connection yet: the flow's packets stay here until Settle, which says that it has, with
	// the epoch that Grant has given.
	Grant(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error)
	Settle(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error)
	Forget(flows ...tcprepair.Flow) error
	Run(ctx context.Context) error
	Close() error
}

// Admission decides whether a service takes one more connection; nil takes all.
type Admission interface {
	Admit(now time.Time, service string, key *peek.Key) bool
}

// Dispatcher is the daemon.
type Dispatcher struct {
	cfg   Config
	log   *slog.Logger
	count *counters
	self  peer.Self

	gate  holder // holds packets during a handoff
	path  Path
	entry *entry.Entry
	// admission is nil until an engine is plugged in.
	admission Admission

	// live is the configuration at work. The goroutine of operate alone changes it, once it is there.
	live    atomic.Pointer[plan]
	roster  *roster
	workers []*worker
	// socketless is nil unless a service is.
	socketless *socketless
	checks     *checks
	// management is nil without reports.
	management *management
	// sessions is nil unless flows of a service belong to sessions.
	sessions *sessions
	// names is nil if the flow table goes with the process.
	names    nodeNames
	outlines outlines

	// patience is how long backends are waited for before connections may be given to them.
	patience time.Duration

	file    string // where the configuration is
	orders  chan order
	stopped chan struct{} // closed when no order is carried out any more
}

// New returns a dispatcher with a validated configuration.
func New(cfg Config, log *slog.Logger) *Dispatcher {
	d := &Dispatcher{
		cfg: cfg, log: log, count: newCounters(), patience: meetTime, orders: make(chan order), stopped: make(chan struct{}),
	}
	d.checks = newChecks(d)
	d.count.registry.MustRegister(newGauges(d), newHeard(d))
	return d
}

// Run serves until ctx ends, and then for as long as it takes to hand off the connections that it has; it is to be called once.
// Connections that have been handed off go on without it: where their packets go stands in the pinned flow table, with which the
// next Run goes on.
func (d *Dispatcher) Run(ctx context.Context) (err error) {
	id, err := peer.LoadIdentity(d.cfg.TLS)
	if err != nil {
		return err
	}
	d.self = peer.Self{Host: d.cfg.Host, Version: peer.Version(), Identity: id}
	// The ports first: they tell of a dispatcher that runs already, whose gate must not be touched.
	ports, err := d.openPorts(ctx)
	if err != nil {
		return err
	}
	defer ports.close()
	path, err := openPath(&d.cfg, d.log)
	if err != nil {
		return err
	}
	d.path, d.gate = path, path.holds
	defer func() { err = errors.Join(err, d.path.Close()) }()
	if path.nft.Gate != nil {
		d.names = path.nft.Names()
	} else if pin := d.cfg.PinPath(); pin != "" {
		names, failed := forward.OpenNames(filepath.Join(pin, "forward"))
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, names.Close()) }()
		d.names = names
	}
	if err := d.prepareSocketless(path); err != nil {
		return err
	}
	if d.socketless != nil {
		defer func() { err = errors.Join(err, d.socketless.close()) }()
	}
	if err := d.checks.open(d.cfg.Checks); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.checks.close()) }()
	if d.cfg.Reports.on() {
		if d.management, err = newManagement(d); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.management.monitor.Close()) }()
	}
	if d.cfg.hasSessions() {
		if d.sessions, err = newSessions(d, sessionForwarder{path.bpf}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, d.sessions.close()) }()
	}
	if err := d.build(); err != nil {
		return err
	}
	if path := d.admitter(); path != nil {
		d.enforce(path, admission.Decision{}) // a process before this one may have been killed while it refused
	}
	d.entry = entry.New(owners{d}, d, d.log)
	return d.serve(ctx, ports)
}

// serve runs everything until the last order has been carried out.
func (d *Dispatcher) serve(ctx context.Context, ports *ports) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	group, serving := errgroup.WithContext(serving)
	d.roster = newRoster(group)
	run := func(f func(context.Context) error) { d.roster.spawn(serving, f) }
	run(d.path.Run)
	run(d.sweep)
	if d.socketless != nil {
		run(d.socketless.run)
	}
	run(func(ctx context.Context) error { return d.servePeers(ctx, ports.agents) })
	run(func(ctx context.Context) error { return d.serveControl(ctx, ports.control) })
	if ports.metrics != nil {
		run(func(ctx context.Context) error { return d.serveMetrics(ctx, ports.metrics) })
	}
	if d.sessions != nil {
		run(d.sessions.run)
	}
	run(d.checks.run)
	if d.management != nil {
		run(d.management.run)
	}
	live := d.live.Load()
	for name, b := range live.backends {
		d.roster.hire(serving, b)
		d.locate(serving, b, live.peers[name])
	}
	// Until then connections wait in the kernel; later they would be refused for want of backends.
	d.await(serving, d.patience, func() bool { return d.roster.serves(live) })
	for _, w := range d.workers {
		run(w.run)
	}
	d.log.Info("dispatcher is up", "host", d.cfg.Host, "version", d.self.Version, "services", len(live.services), "workers", len(d.workers))
	run(func(serving context.Context) error { return d.operate(ctx, serving, stop) })
	return group.Wait()
}

// build makes a plan of the configuration, and opens its listeners.
func (d *Dispatcher) build() (err error) {
	defer func() {
		if err != nil {
			for _, w := range d.workers {
				w.close()
			}
		}
	}()
	known, err := d.remembered()
	if err != nil {
		return err
	}
	p, err := d.compile(d.cfg, &plan{nodes: known})
	if err == nil {
		err = d.remember(p)
	}
	if err != nil {
		return err
	}
	for _, s := range p.services {
		s.take()
	}
	d.live.Store(p)
	if d.socketless != nil {
		if err := d.socketless.tidy(p); err != nil {
			return err
		}
	}
	if d.sessions != nil {
		if err := d.sessions.handle(p, nil); err != nil {
			return err
		}
	}
	n := d.cfg.Workers
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	for range n {
		w, err := newWorker(d.log, d.count, d.found, d.flush)
		if err != nil {
			return err
		}
		d.workers = append(d.workers, w)
	}
	for _, s := range p.services {
		for i, a := range s.cfg.Addresses {
			if err := d.answerAt(a, s.cfg.Socketless); err != nil {
				return fmt.Errorf("service %s: %w", s.cfg.Name, err)
			}
			for _, w := range d.workers {
				if err := w.open(s, i); err != nil {
					return fmt.Errorf("service %s: %w", s.cfg.Name, err)
				}
			}
		}
	}
	return nil
}

// found takes a connection whose first request is known. A worker calls it.
func (d *Dispatcher) found(p *peeking, key peek.Key) {
	refuse := func(reason string, s peek.Status) {
		d.count.unrouted.WithLabelValues(reason).Inc()
		d.refuse(&dispatched{d: d, fd: p.fd, service: p.service, flow: p.flow}, key.Answer(s))
	}
	s := p.service
	to := s.pool(&key)
	switch {
	case to == nil:
		refuse("no-route", peek.NoRoute)
		return
	case !d.admits(s, &key):
		d.count.unrouted.WithLabelValues("admission").Inc()
		d.refuse(&dispatched{d: d, fd: p.fd, service: p.service, flow: p.flow}, d.sorry(&key))
		return
	case !s.reserve():
		refuse("limit", peek.Unavailable)
		return
	}
	c := &dispatched{d: d, fd: p.fd, service: s, flow: p.flow, pool: to, accepted: p.accepted, answer: key.Answer}
	c.visit = to.visit(p.flow, &key)
	c.start()
}

// admits reports whether a service takes one more connection.
func (d *Dispatcher) admits(s *service, key *peek.Key) bool {
	if d.admission != nil && !d.admission.Admit(time.Now(), s.cfg.Name, key) {
		return false
	}
	return d.management == nil || d.management.admit(s)
}

// sorry is what a client is told that admission has refused.
func (d *Dispatcher) sorry(key *peek.Key) []byte {
	return key.AnswerLater(d.cfg.Admission.RetryAfter)
}

// refuse tells a client that it is not served, and leaves the rest of the connection to a worker.
func (d *Dispatcher) refuse(c *dispatched, text []byte) {
	w := d.workers[int(c.fd)%len(d.workers)]
	w.adopt(&peeking{fd: c.fd, service: c.service, flow: c.flow}, text)
}

// flush sends what has been queued for backends.
func (d *Dispatcher) flush() {
	for _, b := range d.live.Load().hosts {
		b.flush()
	}
}

func (d *Dispatcher) forget(f tcprepair.Flow) {
	if err := d.path.Forget(f); err != nil {
		d.log.Warn("cannot forget a flow", "flow", f, "error", err)
	}
}

// sweep drops leases that have ended.
func (d *Dispatcher) sweep(ctx context.Context) error {
	for ctx.Err() == nil {
		wait(ctx, time.Second)
		d.entry.Sweep(time.Now())
	}
	return nil
}

func (d *Dispatcher) serveMetrics(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(d.count.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Node returns the number under which the packet path knows a host.
func (d *Dispatcher) Node(host string) (gate.Node, bool) {
	if host == d.cfg.Host {
		return 0, true
	}
	b := d.backend(host)
	if b == nil {
		return 0, false
	}
	return b.node, true
}

// HostOf returns the name of a node, also of one that is no peer any more.
func (d *Dispatcher) HostOf(n gate.Node) string {
	if n == 0 {
		return d.cfg.Host
	}
	if name, ok := d.live.Load().nodes[n]; ok {
		return name
	}
	return fmt.Sprintf("node %d", n)
}

// Serves reports whether this host is the entry of the service at an address, and host a server of one of its pools.
func (d *Dispatcher) Serves(at netip.AddrPort, host string) (isEntry, server bool) {
	for _, s := range d.live.Load().services {
		if !slices.Contains(s.cfg.Addresses, at) {
			continue
		}
		r := s.routing.Load()
		for _, p := range r.pools {
			if slices.ContainsFunc(p.members, func(m *member) bool { return m.host.name == host }) {
				return true, true
			}
		}
		return true, false
	}
	if v := d.live.Load().sessions[endpoint{unix.IPPROTO_TCP, at}]; v != nil && v.linked() {
		return true, slices.ContainsFunc(v.pool.members, func(m *member) bool { return m.host.name == host })
	}
	return false, false
}

// backend returns the backend that is a host, or nil.
func (d *Dispatcher) backend(host string) *backend { return d.live.Load().backends[host] }

// attempt returns the attempt of that id to hand a connection to a host, or nil.
func (d *Dispatcher) attempt(host string, id uint64) *attempt {
	live := d.live.Load()
	if b := live.backends[host]; b != nil {
		if a := b.attempt(id); a != nil {
			return a
		}
	}
	for _, b := range live.hosts {
		if b.name != host {
			continue
		}
		if a := b.attempt(id); a != nil {
			return a
		}
	}
	return nil
}

var _ entry.Directory = (*Dispatcher)(nil)
