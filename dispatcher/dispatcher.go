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
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

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

	gate  *gate.Gate // holds packets during a handoff
	path  Path
	entry *entry.Entry
	// admission is nil until an engine is plugged in.
	admission Admission

	backends map[string]*backend
	services []*service
	workers  []*worker
	outlines outlines
}

// New returns a dispatcher with a validated configuration.
func New(cfg Config, log *slog.Logger) *Dispatcher {
	return &Dispatcher{cfg: cfg, log: log, count: newCounters()}
}

// Run serves until ctx ends. Connections that have been handed off go on without it: where their packets go stands in the pinned flow
// table, with which the next Run goes on.
func (d *Dispatcher) Run(ctx context.Context) (err error) {
	id, err := peer.LoadIdentity(peer.Files(d.cfg.TLS))
	if err != nil {
		return err
	}
	d.self = peer.Self{Host: d.cfg.Host, Version: peer.Version(), Identity: id}
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	agents, err := lc.Listen(ctx, "tcp", d.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer agents.Close() //nolint:errcheck // closed by whoever serves it
	if err := d.openPath(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.closePath()) }()
	if err := d.build(); err != nil {
		return err
	}
	d.entry = entry.New(d.path, d, d.log)
	return d.serve(ctx, agents)
}

func (d *Dispatcher) serve(ctx context.Context, agents net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	run := func(f func(context.Context) error) {
		group.Go(func() error {
			if err := f(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
	run(d.gate.Run)
	run(d.watchPeers)
	run(d.sweep)
	run(func(ctx context.Context) error { return d.servePeers(ctx, agents) })
	for _, b := range d.backends {
		run(b.run)
		run(b.watch)
	}
	if d.cfg.Metrics != "" {
		ln, err := net.Listen("tcp", d.cfg.Metrics)
		if err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		run(func(ctx context.Context) error { return d.serveMetrics(ctx, ln) })
	}
	for _, w := range d.workers {
		run(w.run)
	}
	d.log.Info("dispatcher is up", "host", d.cfg.Host, "version", d.self.Version, "services", len(d.services), "workers", len(d.workers))
	return group.Wait()
}

// openPath opens the packet path.
func (d *Dispatcher) openPath() (err error) {
	pin := d.cfg.PinPath()
	if pin != "" {
		pin = filepath.Join(pin, "gate")
	}
	d.gate, err = gate.Open(gate.Config{
		Interfaces: d.cfg.Interfaces, PinPath: pin, MaxFlows: d.cfg.Forward.MaxFlows, IdleTimeout: d.cfg.Forward.IdleTimeout,
		Logger: d.log,
	})
	if err != nil {
		return fmt.Errorf("gate: %w", err)
	}
	d.path = d.gate
	return nil
}

func (d *Dispatcher) closePath() error { return d.gate.Close() }

// build makes backends, pools, services and workers of the configuration, and opens the listeners.
func (d *Dispatcher) build() error {
	d.backends = make(map[string]*backend)
	for _, p := range d.cfg.Peers {
		d.backends[p.Name] = newBackend(p.Name, p.Address, gate.Node(p.ID), d.self, d.flush, d.log)
	}
	pools := make(map[string]*pool)
	for _, p := range d.cfg.Pools {
		made, err := newPool(p, d.backends)
		if err != nil {
			return err
		}
		pools[p.Name] = made
	}
	for _, c := range d.cfg.Services {
		if c.Mode == ModeUDP {
			continue // its datagrams are forwarded without a look
		}
		s, err := newService(c, d.forget)
		if err == nil {
			err = s.setRouting(c, pools)
		}
		if err != nil {
			return err
		}
		d.services = append(d.services, s)
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
	for _, s := range d.services {
		for i, a := range s.cfg.Addresses {
			// The dispatcher owns new flows.
			if err := d.path.SetService(a, []gate.Node{0}); err != nil {
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
	switch limit := int64(s.cfg.Limits.Connections); {
	case to == nil:
		refuse("no-route", peek.NoRoute)
		return
	case limit > 0 && s.active.Load() >= limit:
		refuse("limit", peek.Unavailable)
		return
	case d.admission != nil && !d.admission.Admit(time.Now(), s.cfg.Name, &key):
		refuse("admission", peek.Unavailable)
		return
	}
	c := &dispatched{d: d, fd: p.fd, service: s, flow: p.flow, pool: to, accepted: p.accepted, answer: key.Answer}
	if to.cfg.Hash != "" {
		c.hash = to.hash(p.flow, &key)
	}
	c.start()
}

// refuse tells a client that it is not served, and leaves the rest of the connection to a worker.
func (d *Dispatcher) refuse(c *dispatched, text []byte) {
	w := d.workers[int(c.fd)%len(d.workers)]
	w.adopt(&peeking{fd: c.fd, service: c.service, flow: c.flow}, text)
}

// flush sends what has been queued for backends.
func (d *Dispatcher) flush() {
	for _, b := range d.backends {
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

func (d *Dispatcher) watchPeers(ctx context.Context) error {
	var hosts []neighbour.Host
	for _, p := range d.cfg.Peers {
		at, err := netip.ParseAddrPort(p.Address)
		if err != nil {
			return fmt.Errorf("peer %s: %w", p.Name, err)
		}
		hosts = append(hosts, neighbour.Host{Name: p.Name, Addr: at.Addr(), MAC: p.MAC, Node: gate.Node(p.ID)})
	}
	return neighbour.Watch(ctx, d.path, hosts, func(neighbour.Host, net.HardwareAddr) {}, d.log)
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
	b := d.backends[host]
	if b == nil {
		return 0, false
	}
	return b.node, true
}

// HostOf returns the name of a node.
func (d *Dispatcher) HostOf(n gate.Node) string {
	if n == 0 {
		return d.cfg.Host
	}
	for _, b := range d.backends {
		if b.node == n {
			return b.name
		}
	}
	return fmt.Sprintf("node %d", n)
}

// Serves reports whether this host is the entry of the service at an address, and host a server of one of its pools.
func (d *Dispatcher) Serves(at netip.AddrPort, host string) (isEntry, server bool) {
	for _, s := range d.services {
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
	return false, false
}

var _ entry.Directory = (*Dispatcher)(nil)
