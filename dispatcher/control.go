// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/dispatcher/api"
	"github.com/rehome-net/rehome/dispatcher/forward"
)

// farewellTime is how long operators' connections may take to end with the dispatcher.
const farewellTime = time.Second

// control answers operators.
type control struct {
	api.UnimplementedDispatcherServer
	d *Dispatcher
}

// serveControl answers operators until ctx ends.
func (d *Dispatcher) serveControl(ctx context.Context, ln net.Listener) error {
	var options []grpc.ServerOption
	if !strings.HasPrefix(ln.Addr().Network(), "unix") { // who may open the socket is decided by its mode
		options = append(options, grpc.Creds(credentials.NewTLS(d.self.Identity.Server())))
	}
	server := grpc.NewServer(options...)
	api.RegisterDispatcherServer(server, &control{d: d})
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		defer time.AfterFunc(farewellTime, server.Stop).Stop()
		server.GracefulStop() // whose orders have been carried out shall hear of it
	})
	err := server.Serve(ln)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Status implements api.DispatcherServer.
func (c *control) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	live := c.d.live.Load()
	r := &api.StatusResponse{Host: live.cfg.Host, Version: c.d.self.Version, Table: c.d.tableMessage(), Loaded: live.loaded.Unix()}
	for _, s := range live.services {
		m := &api.Service{
			Name: s.cfg.Name, Mode: string(s.cfg.Mode), Peeking: s.peeking.Load(), Active: s.active.Load(),
			Routes: uint32(len(s.cfg.Routes)), DefaultPool: s.cfg.Default,
		}
		for _, a := range s.cfg.Addresses {
			m.Addresses = append(m.Addresses, a.String())
		}
		r.Services = append(r.Services, m)
	}
	for _, p := range live.cfg.Pools {
		r.Pools = append(r.Pools, live.pools[p.Name].message(func(*member) bool { return true }))
	}
	return r, nil
}

func (d *Dispatcher) tableMessage() *api.Table {
	stats := d.stats()
	t := &api.Table{
		Flows: stats.Flows, MaxFlows: uint64(d.cfg.Forward.MaxFlows), Forwarded: stats.Forwarded, Full: stats.Full,
		Unreachable: stats.NoNode,
	}
	if path, ok := d.path.(interface{ Ways() []forward.Way }); ok {
		for _, w := range path.Ways() {
			m := &api.Way{Interface: w.Interface, Shortcut: w.Shortcut}
			if w.Why != nil {
				m.Why = w.Why.Error()
			}
			t.Ways = append(t.Ways, m)
		}
	}
	return t
}

// message describes a pool with some of its backends.
func (p *pool) message(which func(*member) bool) *api.Pool {
	r := &api.Pool{Name: p.cfg.Name, Delivery: string(p.cfg.Delivery), Balance: string(p.cfg.Balance)}
	for _, m := range p.members {
		if which(m) {
			r.Backends = append(r.Backends, m.message())
		}
	}
	return r
}

func (m *member) message() *api.Backend {
	m.mu.Lock()
	weight, drained, starting := m.weight, m.drained, m.starting(time.Now())
	m.mu.Unlock()
	r := &api.Backend{
		Name: m.name, Host: m.host.name, Address: m.host.addr, Node: uint32(m.host.node), State: m.host.state(),
		Weight: uint32(weight), ConfiguredWeight: uint32(m.configured), Drained: drained, Draining: m.host.leaving(),
		Active: m.host.active.Load(), SlowStartLeftMillis: starting.Milliseconds(),
	}
	if m.condition != nil {
		r.Health, r.HealthError = m.condition.words()
	}
	if r.State == stateUp && m.host.gone() {
		r.State = stateDown
	}
	r.Unable = m.unable()
	if r.State == stateUp && r.Unable != "" {
		r.State = stateUnable
	}
	if r.State == stateUp && (r.Drained || r.Draining) {
		r.State = stateDrained
	}
	if r.State == stateUp && m.condition.ill() {
		r.State = stateUnhealthy
	}
	return r
}

// States of a backend.
const (
	stateUp      = "up"
	stateDown    = "down"
	stateSuspect = "suspect"
	stateDrained = "drained"
	// stateUnhealthy is up, with checks that fail.
	stateUnhealthy = "unhealthy"
	// stateUnable is up, on a host that cannot deliver as the pool wants.
	stateUnable = "unable"
)

// state says how the connection to the backend's agent is.
func (b *backend) state() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.link == nil:
		return stateDown
	case b.suspect.Load():
		return stateSuspect
	}
	return stateUp
}

// SetBackend implements api.DispatcherServer.
func (c *control) SetBackend(ctx context.Context, req *api.SetBackendRequest) (*api.SetBackendResponse, error) {
	var (
		weight    *int
		slowStart *time.Duration
	)
	switch {
	case req.GetBackend() == "":
		return nil, status.Error(codes.InvalidArgument, "no backend is named")
	case req.Weight == nil && req.Drained == nil && req.SlowStartMillis == nil:
		return nil, status.Error(codes.InvalidArgument, "neither a weight nor drained nor a slow start is given")
	case req.SlowStartMillis != nil && req.GetPool() == "":
		return nil, status.Error(codes.InvalidArgument, "a slow start is within a pool: name the pool, too")
	case req.GetSlowStartMillis() < 0 || req.GetSlowStartMillis() > maxSlowStart.Milliseconds():
		return nil, status.Errorf(codes.InvalidArgument, "slow start of %d ms: want 0 to %v", req.GetSlowStartMillis(), maxSlowStart)
	case req.Weight != nil && req.GetPool() == "":
		return nil, status.Error(codes.InvalidArgument, "a weight is within a pool: name the pool, too")
	case req.GetWeight() > maxWeight:
		return nil, status.Errorf(codes.InvalidArgument, "weight %d: want 0 to %d", req.GetWeight(), maxWeight)
	}
	if req.Weight != nil {
		weight = new(int(req.GetWeight()))
	}
	if req.SlowStartMillis != nil {
		slowStart = new(time.Duration(req.GetSlowStartMillis()) * time.Millisecond)
	}
	r := &api.SetBackendResponse{}
	err := c.d.command(ctx, func(context.Context) error {
		live := c.d.live.Load()
		if p := req.GetPool(); p != "" && live.pools[p] == nil {
			return status.Errorf(codes.NotFound, "%q is not among the pools", p)
		}
		named := func(m *member) bool { return m.name == req.GetBackend() || m.host.name == req.GetBackend() }
		for _, cfg := range live.cfg.Pools {
			p := live.pools[cfg.Name]
			if req.GetPool() != "" && req.GetPool() != cfg.Name || !slices.ContainsFunc(p.members, named) {
				continue
			}
			for _, m := range p.members {
				if named(m) {
					m.set(weight, req.Drained, slowStart, time.Now())
					now := m.message()
					c.d.log.Info("an operator has set a backend", "pool", cfg.Name, "backend", m.name, "weight", now.GetWeight(), "drained", now.GetDrained(),
						"slow_start_left_ms", now.GetSlowStartLeftMillis())
				}
			}
			r.Pools = append(r.Pools, p.message(named))
		}
		if len(r.GetPools()) == 0 {
			where := "any pool"
			if req.GetPool() != "" {
				where = "pool " + req.GetPool()
			}
			return status.Errorf(codes.NotFound, "%q is no backend of %s", req.GetBackend(), where)
		}
		return nil
	})
	if err != nil {
		return nil, callError(err)
	}
	return r, nil
}

// Reload implements api.DispatcherServer.
func (c *control) Reload(ctx context.Context, _ *api.ReloadRequest) (*api.ReloadResponse, error) {
	begin := time.Now()
	if err := c.d.ReloadFile(ctx); err != nil {
		return nil, callError(err)
	}
	live := c.d.live.Load()
	return &api.ReloadResponse{
		Services: uint32(len(live.services)), Pools: uint32(len(live.pools)), Routes: uint32(live.routes()),
		Micros: time.Since(begin).Microseconds(),
	}, nil
}

// callError gives an error the code that tells operators' programs what to do about it.
func callError(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	var (
		config  *ConfigError
		restart *RestartError
	)
	switch {
	case errors.As(err, &config):
		code = codes.InvalidArgument
	case errors.As(err, &restart), errors.Is(err, ErrNoFile):
		code = codes.FailedPrecondition
	case errors.Is(err, ErrStopped):
		code = codes.Unavailable
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, fmt.Sprint(err))
}
