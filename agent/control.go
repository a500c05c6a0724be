// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// control answers operators.
type control struct {
	api.UnimplementedAgentServer
	e *engine
	// reload reads the configuration file again.
	reload func() error
}

var errStopped = status.Error(codes.Unavailable, "the agent is stopping")

// Status implements api.AgentServer.
func (c *control) Status(ctx context.Context, _ *api.StatusRequest) (*api.StatusResponse, error) {
	var r *api.StatusResponse
	if !c.e.ask(ctx, func(e *engine) { r = e.status(time.Now()) }) {
		return nil, errStopped
	}
	if list, err := connections(); err != nil {
		c.e.log.Warn("cannot count connections", "error", err)
	} else {
		countConnections(r.GetServices(), list)
	}
	stats := c.e.gate.Stats()
	r.Counters.PacketsHeld, r.Counters.PacketsDropped = stats.Held, stats.NoTap+stats.Overflow
	return r, nil
}

// countConnections tells of each service how many connections at its address the kernel has. TIME_WAIT is what is left of one.
func countConnections(services []*api.Service, list []socketState) {
	at := make(map[string]uint32, len(services))
	for _, s := range list {
		if s.state != stateTimeWait {
			at[s.flow.Local.String()]++
		}
	}
	for _, s := range services {
		s.Connections = at[s.GetAddress()]
	}
}

func (e *engine) status(now time.Time) *api.StatusResponse {
	r := &api.StatusResponse{
		Host: e.cfg.Host, Version: peer.Version(), Draining: e.draining,
		Counters: &api.Counters{
			MovedOut: e.counters.movedOut, MovedIn: e.counters.movedIn, Resumed: e.counters.resumed,
			Refused: e.counters.refused, Lost: e.counters.lost, Recovered: e.counters.recovered,
		},
	}
	if !e.failure.IsZero() {
		r.FailureUnixMillis = e.failure.UnixMilli()
	}
	for _, s := range e.cfg.Services {
		n := uint32(0)
		for a := range e.apps {
			if a.services[s.Name] != nil {
				n++
			}
		}
		for _, a := range s.Addresses {
			r.Services = append(r.Services, &api.Service{
				Name: s.Name, Address: a.String(), Entry: s.Entry, Applications: n, Servers: s.Servers,
			})
		}
	}
	for _, cfg := range e.cfg.Peers {
		p := e.peers[cfg.Name]
		peer := &api.Peer{Name: p.name, Address: p.addr, Connected: p.link != nil, Mac: p.mac}
		if p.err != nil {
			peer.Error = p.err.Error()
		}
		r.Peers = append(r.Peers, peer)
	}
	for _, s := range e.sources {
		r.Migrations = append(r.Migrations, &api.Migration{
			Id: s.id, Flow: s.flow.String(), Role: "source", Peer: s.target,
			State: s.machine.State().String(), AgeMicros: now.Sub(s.started).Microseconds(),
		})
	}
	e.processStatus(now, r)
	for _, t := range e.targets {
		r.Migrations = append(r.Migrations, &api.Migration{
			Id: t.id, Flow: t.flow.String(), Role: "target", Peer: t.from.name,
			State: t.machine.State().String(), AgeMicros: now.Sub(t.started).Microseconds(),
		})
	}
	return r
}

// Flows implements api.AgentServer.
func (c *control) Flows(req *api.FlowsRequest, stream grpc.ServerStreamingServer[api.Flow]) error {
	got := make(chan []located, 1)
	if !c.e.ask(stream.Context(), func(e *engine) {
		e.list(wire.List{}, func(l []located, _ int) { got <- l })
	}) {
		return errStopped
	}
	var flows []located
	select {
	case flows = <-got:
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-c.e.stopped:
		return errStopped
	}
	for _, l := range flows {
		s := l.status
		if req.GetService() != "" && req.GetService() != s.Service {
			continue
		}
		err := stream.Send(&api.Flow{
			Flow: s.Flow.String(), Service: s.Service, Epoch: s.Epoch, AgeMicros: s.Age.Microseconds(), Movable: s.Movable,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Move implements api.AgentServer.
func (c *control) Move(req *api.MoveRequest, stream grpc.ServerStreamingServer[api.MoveEvent]) error {
	if req.GetProcess() != 0 || req.GetWhole() {
		return c.moveProcess(req, stream)
	}
	r := MoveRequest{
		To: req.GetTo(), Service: req.GetService(), Drain: req.GetDrain(), Concurrency: int(req.GetConcurrency()),
		Timeout: time.Duration(req.GetTimeoutMicros()) * time.Microsecond,
	}
	if req.GetFlow() != "" {
		f, err := tcprepair.ParseFlow(req.GetFlow())
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
		r.Flow = f
	}
	out := newMailbox()
	sum := &summary{started: time.Now()}
	var op *operation
	if !c.e.ask(stream.Context(), func(e *engine) {
		op = e.startOperation(r,
			func(total int) {
				if r.Flow.IsValid() {
					return // one connection: its operator learns what became of it, and is not woken while its client waits
				}
				out.put(&api.MoveEvent{Event: &api.MoveEvent_Planned{Planned: &api.Planned{Total: uint32(total)}}})
			},
			func(m Moved) {
				sum.add(m)
				out.put(&api.MoveEvent{Event: &api.MoveEvent_Moved{Moved: movedMessage(m)}})
			},
			func(err error) {
				out.put(&api.MoveEvent{Event: &api.MoveEvent_Summary{Summary: sum.message(err)}})
				out.close()
			})
	}) {
		// The caller may be gone, and the operation begun all the same.
		c.e.post(func(*engine) {
			if op != nil {
				op.cancel(errAborted)
			}
		})
		return errStopped
	}
	stop := context.AfterFunc(stream.Context(), func() {
		c.e.post(func(*engine) { op.cancel(errAborted) })
	})
	defer stop()
	for {
		events, more := out.take(c.e.stopped)
		for _, ev := range events {
			if err := stream.Send(ev); err != nil {
				return err
			}
		}
		if !more {
			break
		}
	}
	if out.ended() {
		return nil
	}
	// The engine has ended, so that sum is this goroutine's.
	return stream.Send(&api.MoveEvent{Event: &api.MoveEvent_Summary{Summary: sum.message(errUnfinished)}})
}

// Undrain implements api.AgentServer.
func (c *control) Undrain(ctx context.Context, _ *api.UndrainRequest) (*api.UndrainResponse, error) {
	if !c.e.ask(ctx, func(e *engine) { e.setDraining(false) }) {
		return nil, errStopped
	}
	return &api.UndrainResponse{}, nil
}

// Announce implements api.AgentServer.
func (c *control) Announce(ctx context.Context, req *api.AnnounceRequest) (*api.AnnounceResponse, error) {
	const longest = 366 * 24 * time.Hour
	in := req.GetInMicros()
	if in < 0 || in > longest.Microseconds() || req.GetCancel() && in != 0 {
		return nil, status.Error(codes.InvalidArgument, fmt.Sprintf("a failure in %d us: want 0 to %v, and no time when it is called off", in, longest))
	}
	var (
		r   = &api.AnnounceResponse{}
		at  time.Time
		err error
	)
	if !req.GetCancel() {
		at = time.Now().Add(time.Duration(in) * time.Microsecond)
		r.FailureUnixMillis = at.UnixMilli()
	}
	if !c.e.ask(ctx, func(e *engine) {
		r.Dispatchers = uint32(len(e.cfg.Report.Dispatchers))
		err = e.announceFailure(at)
	}) {
		return nil, errStopped
	}
	if err != nil {
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	}
	return r, nil
}

// Abort implements api.AgentServer.
func (c *control) Abort(ctx context.Context, req *api.AbortRequest) (*api.AbortResponse, error) {
	var f tcprepair.Flow
	if req.GetFlow() != "" {
		var err error
		if f, err = tcprepair.ParseFlow(req.GetFlow()); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	var n int
	if !c.e.ask(ctx, func(e *engine) { n = e.abort(f) }) {
		return nil, errStopped
	}
	if f.IsValid() && n == 0 {
		return nil, status.Error(codes.NotFound, fmt.Sprintf("%v is not being moved", f))
	}
	return &api.AbortResponse{Aborted: uint32(n)}, nil
}

// Reload implements api.AgentServer.
func (c *control) Reload(ctx context.Context, _ *api.ReloadRequest) (*api.ReloadResponse, error) {
	begin := time.Now()
	if err := c.reload(); err != nil {
		return nil, reloadError(err)
	}
	r := &api.ReloadResponse{}
	if !c.e.ask(ctx, func(e *engine) { r.Services, r.Peers = uint32(len(e.cfg.Services)), uint32(len(e.cfg.Peers)) }) {
		return nil, errStopped
	}
	r.Micros = time.Since(begin).Microseconds()
	return r, nil
}

// reloadError gives an error the code that tells operators' programs what to do about it.
func reloadError(err error) error {
	var (
		config  *ConfigError
		restart *RestartError
	)
	switch {
	case errors.As(err, &config):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.As(err, &restart), errors.Is(err, ErrNoFile):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, ErrStopped):
		return errStopped
	}
	return status.Error(codes.Internal, err.Error())
}

func movedMessage(m Moved) *api.Moved {
	r := &api.Moved{
		Flow: m.Flow.String(), To: m.To, Outcome: m.Outcome,
		FreezeMicros: m.Freeze.Microseconds(), TotalMicros: m.Total.Microseconds(), SnapshotMicros: m.Snapshot.Microseconds(),
		HeldPackets: uint32(m.Held), StateBytes: uint64(m.StateBytes), SnapshotBytes: uint64(m.SnapshotBytes),
	}
	if m.Err != nil {
		r.Error = m.Err.Error()
	}
	return r
}

// summary counts the ends of an operation's moves.
type summary struct {
	started                   time.Time
	moved, failed, lost, gone uint32
	freezes                   []time.Duration
}

func (s *summary) add(m Moved) {
	switch m.Outcome {
	case OutcomeMoved:
		s.moved++
		s.freezes = append(s.freezes, m.Freeze)
	case OutcomeLost:
		s.lost++
	case OutcomeGone:
		s.gone++
	default:
		s.failed++
	}
}

func (s *summary) message(err error) *api.Summary {
	r := &api.Summary{
		Moved: s.moved, Failed: s.failed, Lost: s.lost, Gone: s.gone, TotalMicros: time.Since(s.started).Microseconds(),
	}
	if n := len(s.freezes); n > 0 {
		slices.Sort(s.freezes)
		r.FreezeMedianMicros = s.freezes[n/2].Microseconds()
		r.FreezeP99Micros = s.freezes[n*99/100].Microseconds()
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// mailbox carries events from the engine, which must not wait, to a caller who may be slow.
type mailbox struct {
	mu     sync.Mutex
	events []*api.MoveEvent
	closed bool
	ready  chan struct{}
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

func (m *mailbox) put(ev *api.MoveEvent) {
	m.mu.Lock()
	m.events = append(m.events, ev)
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.signal()
}

// ended reports whether the last event has been put in.
func (m *mailbox) ended() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

func (m *mailbox) signal() {
	select {
	case m.ready <- struct{}{}:
	default:
	}
}

// take waits for events; more is false when these are the last.
func (m *mailbox) take(stopped <-chan struct{}) (events []*api.MoveEvent, more bool) {
	select {
	case <-m.ready:
	case <-stopped:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	events, m.events = m.events, nil
	select {
	case <-stopped:
		return events, false
	default:
	}
	return events, !m.closed
}
