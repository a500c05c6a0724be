// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
)

// moveProcess moves a tree of processes for an operator.
func (c *control) moveProcess(req *api.MoveRequest, stream grpc.ServerStreamingServer[api.MoveEvent]) error {
	ctx, cancel := stream.Context(), context.CancelFunc(func() {})
	if t := time.Duration(req.GetTimeoutMicros()) * time.Microsecond; t > 0 {
		ctx, cancel = context.WithTimeout(ctx, t)
	}
	defer cancel()
	started := time.Now()
	if err := stream.Send(&api.MoveEvent{Event: &api.MoveEvent_Planned{Planned: &api.Planned{Total: 1}}}); err != nil {
		return err
	}
	r := ProcessRequest{PID: int(req.GetProcess()), Service: req.GetService(), To: req.GetTo(), Lazy: req.GetLazy()}
	m, err := c.e.moveProcess(ctx, r)
	if err != nil {
		return err
	}
	if err := stream.Send(&api.MoveEvent{Event: &api.MoveEvent_Process{Process: processMessage(m)}}); err != nil {
		return err
	}
	sum := &api.Summary{TotalMicros: time.Since(started).Microseconds()}
	switch m.Outcome {
	case OutcomeMoved:
		sum.Moved, sum.FreezeMedianMicros, sum.FreezeP99Micros = 1, m.Freeze.Microseconds(), m.Freeze.Microseconds()
	case OutcomeLost:
		sum.Lost = 1
	default:
		sum.Failed = 1
	}
	return stream.Send(&api.MoveEvent{Event: &api.MoveEvent_Summary{Summary: sum}})
}

// moveProcess looks at a tree and moves it. What speaks against it is the result's error; its own error means that the agent is ending. When
// ctx ends the move is given up, and awaited.
func (e *engine) moveProcess(ctx context.Context, r ProcessRequest) (ProcessMoved, error) {
	var path string
	if !e.ask(ctx, func(e *engine) { path = e.cfg.Process.CRIU }) {
		return ProcessMoved{}, errStopped
	}
	failed := func(err error) (ProcessMoved, error) {
		return ProcessMoved{PID: r.PID, To: r.To, Outcome: OutcomeResumed, Err: err}, nil
	}
	path, _, err := criu.Find(path)
	if err != nil {
		return failed(err)
	}
	if r.PID == 0 {
		if r.PID, err = e.pidOf(ctx, r.Service); err != nil {
			return failed(err)
		}
	}
	tree, err := criu.Inspect(r.PID)
	if err != nil {
		return failed(err)
	}
	done := make(chan ProcessMoved, 1)
	e.post(func(e *engine) { e.startProcess(path, tree, r, func(m ProcessMoved) { done <- m }) })
	stop := context.AfterFunc(ctx, func() {
		e.post(func(e *engine) {
			for _, p := range e.processes {
				if p.process.PID == r.PID {
					p.step(migration.Event{Kind: migration.Canceled, Err: errAborted})
				}
			}
		})
	})
	defer stop()
	select {
	case m := <-done:
		return m, nil
	case <-e.stopped:
		select {
		case m := <-done:
			return m, nil
		default:
			return ProcessMoved{}, errStopped
		}
	}
}

// pidOf returns the process that serves a service.
func (e *engine) pidOf(ctx context.Context, service string) (int, error) {
	var cfg Config
	if !e.ask(ctx, func(e *engine) { cfg = e.cfg }) {
		return 0, errStopped
	}
	return cfg.findProcess(service)
}

func processMessage(m ProcessMoved) *api.ProcessMoved {
	r := &api.ProcessMoved{
		Name: m.Name, Pid: int32(m.PID), NewPid: int32(m.NewPID), To: m.To, Outcome: m.Outcome,
		FreezeMicros: m.Freeze.Microseconds(), DumpMicros: m.Dump.Microseconds(), TotalMicros: m.Total.Microseconds(),
		Connections: uint32(m.Connections), Processes: uint32(m.Processes), HeldPackets: uint32(m.Held), ImageBytes: m.ImageBytes,
		LazyBytes: m.LazyBytes,
	}
	if m.Err != nil {
		r.Error = m.Err.Error()
	}
	return r
}

// processStatus adds the moves of processes to the agent's status.
func (e *engine) processStatus(now time.Time, r *api.StatusResponse) {
	for _, s := range e.processes {
		r.Migrations = append(r.Migrations, &api.Migration{
			Id: s.id, Flow: s.process.Name, Role: "source", Peer: s.target, State: s.machine.State().String(), AgeMicros: now.Sub(s.started).Microseconds(),
		})
	}
	for _, t := range e.arrivals {
		state := migration.TargetIdle
		if t.machine != nil {
			state = t.machine.State()
		}
		r.Migrations = append(r.Migrations, &api.Migration{
			Id: t.id, Flow: t.offer.Name, Role: "target", Peer: t.from.name, State: state.String(), AgeMicros: now.Sub(t.started).Microseconds(),
		})
	}
}
