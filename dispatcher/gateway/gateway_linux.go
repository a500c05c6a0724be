// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
)

const (
	beatInterval  = 50 * time.Millisecond
	sweepInterval = 10 * time.Second
	// eventRoom is how many events may wait for the loop, beside what waits in the taps.
	eventRoom = 1024
)

// Gateway reads the signalling that passes this host. Open makes one, Run drives it, Close ends it.
type Gateway struct {
	cfg      Config
	log      *slog.Logger
	divert   *diverter
	watch    *watch
	outbox   outbox
	services map[service]Mode
	dial     func(context.Context) (*wire.Link, error)
	events   chan event

	mu    sync.Mutex // stats
	stats Stats
}

// service is an address whose signalling is read.
type service struct {
	protocol uint8
	address  netip.AddrPort
}

// Open attaches the programs in the network namespace of the calling thread. Nothing is diverted before Run.
//
// Errors to expect: ErrPermission, ErrUnsupported, ErrAttached.
func Open(cfg Config, protocols Protocols, log *slog.Logger) (*Gateway, error) {
	fail := func(err error) (*Gateway, error) { return nil, &OpError{Op: "open", Err: err} }
	if err := cfg.Validate(); err != nil {
		return fail(err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	identity, err := peer.LoadIdentity(cfg.TLS)
	if err != nil {
		return fail(err)
	}
	self := peer.Self{Host: cfg.Host, Version: peer.Version(), Identity: identity}
	g := &Gateway{
		cfg: cfg, log: log, services: make(map[service]Mode), events: make(chan event, eventRoom),
		outbox: outbox{keep: cfg.Keep, max: cfg.Limits.Reports},
		dial: func(ctx context.Context) (*wire.Link, error) {
			return self.Dial(ctx, cfg.Dispatcher.Name, cfg.Dispatcher.Address)
		},
	}
	for _, s := range cfg.Services {
		for _, a := range s.Addresses {
			for _, protocol := range s.protocols() {
				g.services[service{protocol, a}] = s.Mode
			}
		}
	}
	g.watch = newWatch(cfg.limits(), func(k session.Key) (Mode, bool) {
		mode, ok := g.services[service{k.Protocol, k.Server}]
		return mode, ok
	}, protocols)
	if g.divert, err = newDiverter(&cfg); err != nil {
		return fail(err)
	}
	for _, h := range append([]HostConfig{cfg.Dispatcher}, cfg.Servers...) {
		if h.MAC == "" {
			continue
		}
		mac, err := net.ParseMAC(h.MAC)
		if err == nil {
			err = g.divert.learned(h.Name, mac)
		}
		if err != nil {
			return fail(errors.Join(fmt.Errorf("%s: %w", h.Name, err), g.Close()))
		}
	}
	return g, nil
}

// Close detaches the programs. Packets pass.
func (g *Gateway) Close() error {
	if err := g.divert.close(); err != nil {
		return &OpError{Op: "close", Err: err}
	}
	return nil
}

// Stats returns what was counted so far.
func (g *Gateway) Stats() Stats {
	g.mu.Lock()
	s := g.stats
	g.mu.Unlock()
	if c, err := g.divert.counters(); err == nil {
		s.Diverted, s.Released = c.Diverted, c.Released
		s.Refused, s.Unverified, s.Lapsed, s.Exempt, s.Fragments = c.Refused, c.Unverified, c.Lapsed, c.Exempt, c.Fragments
	}
	s.Unknown = 1 + len(g.cfg.Servers) - g.divert.known()
	return s
}

// Run reads signalling until ctx ends. It returns nil then. It runs once.
func (g *Gateway) Run(ctx context.Context) error {
	group, running := errgroup.WithContext(ctx)
	c := &channel{dial: g.dial, hold: g.cfg.Hold, events: g.events, log: g.log}
	group.Go(func() error { return c.run(running) })
	group.Go(func() error { return g.loop(running) })
	group.Go(func() error { return g.follow(running) })
	for i, t := range g.divert.taps {
		group.Go(func() error { return g.read(running, i, t) })
	}
	if g.cfg.Metrics != "" {
		group.Go(func() error { return g.serveMetrics(running) })
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return &OpError{Op: "run", Err: err}
	}
	return nil
}

// read brings the frames of one tap to the loop.
func (g *Gateway) read(ctx context.Context, i int, t *tap) error {
	defer context.AfterFunc(ctx, func() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) })()
	scratch := make([]byte, maxFrame+64)
	for {
		frame, err := t.read(scratch)
		if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case g.events <- event{frame: frame, tap: i}:
		case <-ctx.Done():
			return nil
		}
	}
}

// loop owns the watch and the outbox. It stays on one thread: frames reach the stack through the queue of the CPU that writes them.
func (g *Gateway) loop(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	beat, sweep := time.NewTicker(beatInterval), time.NewTicker(sweepInterval)
	defer beat.Stop()
	defer sweep.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	if err := g.divert.beat(); err != nil {
		return err
	}
	defer g.rest()
	var link *wire.Link
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-g.events:
			now := time.Now()
			link = g.handle(now, link, e)
			for range len(g.events) {
				link = g.handle(now, link, <-g.events)
			}
		case <-beat.C:
			if err := g.divert.beat(); err != nil {
				return err
			}
			for _, id := range g.outbox.expire(time.Now()) {
				g.watch.confirmed(time.Now(), id)
			}
		case <-sweep.C:
			g.watch.sweep(time.Now())
		case <-due.C:
		}
		if link != nil {
			link.Flush()
		}
		now := time.Now()
		next := g.watch.tick(now)
		g.act(now, link)
		wait := time.Hour
		if !next.IsZero() {
			wait = max(next.Sub(now), 0)
		}
		due.Reset(wait)
	}
}

// handle takes an event into account, and returns the link that stands after it.
func (g *Gateway) handle(now time.Time, link *wire.Link, e event) *wire.Link {
	switch {
	case e.link != nil:
		link = e.link
		g.count(func(s *Stats) { s.Connections++; s.Connected = true })
		for _, r := range g.outbox.connected() {
			g.send(link, r)
		}
	case e.down:
		link = nil
		g.outbox.disconnected()
		g.count(func(s *Stats) { s.Connected = false })
	case e.answered != 0:
		if g.outbox.answered(e.answered) {
			g.count(func(s *Stats) { s.Confirmed++ })
			g.watch.confirmed(now, e.answered)
		}
	case e.rejected != nil:
		if g.outbox.answered(e.rejected.id) {
			g.count(func(s *Stats) { s.Rejected++ })
			g.log.Warn("the dispatcher did not take a report", "code", e.rejected.reason.Code, "reason", e.rejected.reason.Reason)
			g.watch.confirmed(now, e.rejected.id)
		}
	default:
		g.watch.frame(now, e.tap, e.frame)
	}
	g.act(now, link)
	return link
}

// act does what the watch has decided: reports first, so that the dispatcher works while the rest is done.
func (g *Gateway) act(now time.Time, link *wire.Link) {
	w := g.watch
	for _, r := range w.reports {
		send, lost := g.outbox.add(now, r)
		for _, r := range send {
			g.send(link, r)
		}
		for _, id := range lost {
			w.confirmed(now, id)
		}
	}
	for _, flow := range w.resume {
		if err := g.divert.resume(flow); err != nil {
			g.log.Warn("cannot read a flow again", "flow", flow, "error", err)
		}
	}
	lost := uint64(0)
	for _, h := range w.released {
		if err := g.divert.taps[h.tap].release(h.frame); err != nil {
			lost++
			g.log.Debug("cannot give a packet back", "error", err)
		}
	}
	for _, flow := range w.exempt {
		if err := g.divert.exempt(flow); err != nil {
			g.log.Warn("cannot leave a flow alone", "flow", flow, "error", err)
		}
	}
	clear(w.released)
	w.reports, w.resume, w.released, w.exempt = w.reports[:0], w.resume[:0], w.released[:0], w.exempt[:0]
	g.count(func(s *Stats) {
		c := w.counts
		s.Late, s.Behind, s.Unread, s.Overflow = c.Late, c.Behind, c.Unread, c.Overflow
		s.Reports, s.Halves, s.Failed = c.Reports, c.Halves, c.Failed
		s.Expired, s.Dropped = g.outbox.expired, g.outbox.dropped
		s.Lost += lost
	})
}

// send gives a report to the link. One that fails is repeated on the next.
func (g *Gateway) send(link *wire.Link, r report) {
	if link == nil {
		return
	}
	if err := link.Queue(r.id, r.message(), -1); err != nil {
		g.log.Debug("cannot send a report", "error", err)
		_ = link.Close()
		return
	}
	link.Flush()
}

// rest lets packets pass, and releases what is held.
func (g *Gateway) rest() {
	if err := g.divert.rest(); err != nil {
		g.log.Warn("cannot stop diverting", "error", err)
	}
	now := time.Now()
	for {
		select {
		case e := <-g.events:
			if e.frame != nil {
				g.watch.frame(now, e.tap, e.frame)
			}
			continue
		default:
		}
		break
	}
	g.watch.tick(now.Add(g.cfg.Hold + time.Second))
	g.act(now, nil)
}

func (g *Gateway) count(change func(*Stats)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.stats)
}

// follow learns the link-layer addresses that the configuration does not give.
func (g *Gateway) follow(ctx context.Context) error {
	var hosts []neighbour.Host
	for _, h := range append([]HostConfig{g.cfg.Dispatcher}, g.cfg.Servers...) {
		if h.MAC != "" {
			continue
		}
		addr, err := netip.ParseAddr(h.Address)
		if err != nil { // the dispatcher's has a port
			at, err := netip.ParseAddrPort(h.Address)
			if err != nil {
				return err
			}
			addr = at.Addr()
		}
		hosts = append(hosts, neighbour.Host{Name: h.Name, Addr: addr, Node: gate.Node(len(hosts) + 1)})
	}
	if len(hosts) == 0 {
		return nil
	}
	err := neighbour.Watch(ctx, sources{g.divert, hosts}, hosts, func(h neighbour.Host, mac net.HardwareAddr) {
		g.log.Info("learned a link-layer address", "host", h.Name, "mac", mac.String())
	}, g.log)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// sources is the diverter's table of hosts, for package neighbour.
type sources struct {
	divert *diverter
	hosts  []neighbour.Host
}

// SetNode takes a host's link-layer address.
func (s sources) SetNode(n gate.Node, _ int, dst, _ net.HardwareAddr) error {
	if len(dst) != 6 {
		return fmt.Errorf("link-layer address %v: not an Ethernet's", dst)
	}
	return s.divert.learned(s.hosts[n-1].Name, dst)
}

func (g *Gateway) serveMetrics(ctx context.Context) error {
	ln, err := net.Listen("tcp", g.cfg.Metrics)
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(newCollector(g.Stats)); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
