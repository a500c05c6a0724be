// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/tcprepair"
)

// operated is an engine that operators can reach, until stop: that ends it as an agent does.
func operated(t *testing.T, e *engine) (_ *api.Client, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterAgentServer(server, &control{e: e, reload: func() error { return ErrNoFile }})
	served := make(chan error, 1)
	go func() { served <- server.Serve(ln) }()
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _ = e.run(ctx) }()
	client, err := api.Dial(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client, func() {
		cancel()
		<-e.stopped
		endCalls(server)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
}

// TestStopDuringDrain ends an agent during a drain with much to tell: the operator hears all of it, and the summary.
func TestStopDuringDrain(t *testing.T) {
	const n = 3000
	e := testEngine(t, "b", "a", "b")
	client, stop := operated(t, e)
	stream, err := client.Move(t.Context(), &api.MoveRequest{Drain: true})
	if err != nil {
		t.Fatal(err)
	}
	// The entry does not answer, so the drain goes on; meanwhile its connections say that they cannot be moved.
	for begun := false; !begun; {
		if !e.ask(t.Context(), func(e *engine) {
			for op := range e.ops {
				found := make([]located, n)
				for i := range found {
					found[i] = located1(nil, i+1)
					found[i].status.Movable = false
				}
				op.add(found)
				begun = true
			}
		}) {
			t.Fatal("the engine has ended")
		}
	}
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	<-e.stopped // nothing has been read until now
	told := 0
	var last *api.Summary
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %d events: %v", told, err)
		}
		if ev.GetMoved() != nil {
			told++
		}
		last = ev.GetSummary()
	}
	if told != n || last.GetFailed() != n || !strings.Contains(last.GetError(), errStopping.Error()) {
		t.Errorf("%d of %d told; summary %v", told, n, last)
	}
	<-stopped
}

// TestStopWithUnfinishedMove ends an engine that leaves a move behind: its operator hears so.
func TestStopWithUnfinishedMove(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	client, stop := operated(t, e)
	stream, err := client.Move(t.Context(), &api.MoveRequest{Drain: true})
	if err != nil {
		t.Fatal(err)
	}
	for begun := false; !begun; {
		if !e.ask(t.Context(), func(e *engine) {
			for op := range e.ops {
				op.active++ // a move that does not end
				begun = true
				e.times.Limit, e.times.Grace = time.Millisecond, time.Millisecond
				machine, _ := migration.RecoverSource(time.Now(), migration.SourceParams{Host: "a", Target: "b", Epoch: 1}, migration.Config{})
				e.sources[7] = &source{e: e, id: 7, machine: machine}
			}
		}) {
			t.Fatal("the engine has ended")
		}
	}
	stop()
	var last *api.Summary
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = ev.GetSummary()
	}
	if last.GetError() != errUnfinished.Error() {
		t.Errorf("summary %v", last)
	}
}

// TestStopIsBounded ends an agent whose operator does not read.
func TestStopIsBounded(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	client, stop := operated(t, e)
	if _, err := client.Move(t.Context(), &api.MoveRequest{Drain: true}); err != nil {
		t.Fatal(err)
	}
	for begun := false; !begun; {
		e.ask(t.Context(), func(e *engine) {
			for op := range e.ops {
				for range 100000 {
					op.report(Moved{Flow: testFlow(1), Outcome: OutcomeResumed, Err: errSelf})
				}
				begun = true
			}
		})
	}
	begin := time.Now()
	stop()
	if took := time.Since(begin); took < callsTime || took > callsTime+5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestReloadError gives each error the code by which "rehome reload" chooses its exit code.
func TestReloadError(t *testing.T) {
	for err, want := range map[error]codes.Code{
		&ConfigError{io.EOF}:                  codes.InvalidArgument,
		&RestartError{Keys: []string{"host"}}: codes.FailedPrecondition,
		ErrNoFile:                             codes.FailedPrecondition,
		ErrStopped:                            codes.Unavailable,
		io.EOF:                                codes.Internal,
	} {
		if got := status.Code(reloadError(err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// TestCountConnections counts by address; what TIME_WAIT is left of is none.
func TestCountConnections(t *testing.T) {
	a, b := testFlow(1), testFlow(2)
	b.Local = netip.AddrPortFrom(b.Local.Addr(), b.Local.Port()+1)
	services := []*api.Service{{Address: a.Local.String()}, {Address: b.Local.String()}, {Address: "192.0.2.99:1"}}
	countConnections(services, []socketState{
		{a, tcprepair.Established}, {testFlow(3), tcprepair.CloseWait}, {testFlow(4), stateTimeWait}, {b, tcprepair.Established},
	})
	for i, want := range []uint32{2, 1, 0} {
		if got := services[i].GetConnections(); got != want {
			t.Errorf("%s: %d connections, want %d", services[i].GetAddress(), got, want)
		}
	}
}
