// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	"github.com/rehome-net/rehome/handoff/peer"
)

// command runs one command line.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

// fakeAgent answers as it is told.
type fakeAgent struct {
	// left are the connections that Status tells of, one after the other; then none.
	left []uint32
	api.UnimplementedAgentServer
	moves     []*api.MoveEvent
	asked     *api.MoveRequest
	announced *api.AnnounceRequest
	reload    codes.Code
}

func (f *fakeAgent) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	left := uint32(0)
	if len(f.left) > 0 {
		left, f.left = f.left[0], f.left[1:]
	}
	return &api.StatusResponse{
		Host: "web-1", Version: "v0", Draining: true, Counters: &api.Counters{MovedOut: 7},
		Services:   []*api.Service{{Name: "files", Address: "198.51.100.1:80", Entry: "e", Servers: []string{"web-1", "web-2"}, Applications: 1, Connections: left}},
		Peers:      []*api.Peer{{Name: "web-2", Address: "10.0.0.2:7070", Error: "connection refused"}},
		Migrations: []*api.Migration{{Flow: "192.0.2.7:1-198.51.100.1:80", Role: "source", Peer: "web-2", State: "sent"}},
	}, nil
}

func (f *fakeAgent) Flows(_ *api.FlowsRequest, s grpc.ServerStreamingServer[api.Flow]) error {
	return s.Send(&api.Flow{Flow: "192.0.2.7:1-198.51.100.1:80", Service: "files", Epoch: 3, Movable: true})
}

func (f *fakeAgent) Move(r *api.MoveRequest, s grpc.ServerStreamingServer[api.MoveEvent]) error {
	f.asked = r
	for _, m := range f.moves {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAgent) Abort(_ context.Context, r *api.AbortRequest) (*api.AbortResponse, error) {
	if r.GetFlow() != "" {
		return nil, status.Error(codes.NotFound, "it is not being moved")
	}
	return &api.AbortResponse{Aborted: 2}, nil
}

func (f *fakeAgent) Undrain(context.Context, *api.UndrainRequest) (*api.UndrainResponse, error) {
	return &api.UndrainResponse{}, nil
}

func (f *fakeAgent) Announce(_ context.Context, r *api.AnnounceRequest) (*api.AnnounceResponse, error) {
	f.announced = r
	if r.GetCancel() {
		return &api.AnnounceResponse{Dispatchers: 2}, nil
	}
	return &api.AnnounceResponse{FailureUnixMillis: 1_800_000_000_000 + r.GetInMicros()/1000, Dispatchers: 2}, nil
}

// serve starts the fake agent and returns the path of its socket.
func (f *fakeAgent) serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterAgentServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(ln) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func moved(outcome, reason string) *api.MoveEvent {
	return &api.MoveEvent{Event: &api.MoveEvent_Moved{Moved: &api.Moved{
		Flow: "192.0.2.7:1-198.51.100.1:80", To: "web-2", Outcome: outcome, Error: reason, FreezeMicros: 600, TotalMicros: 1500, HeldPackets: 3,
	}}}
}

func summary(s *api.Summary) *api.MoveEvent {
	return &api.MoveEvent{Event: &api.MoveEvent_Summary{Summary: s}}
}

func TestExitCodes(t *testing.T) {
	good := &fakeAgent{moves: []*api.MoveEvent{moved(agent.OutcomeMoved, ""), summary(&api.Summary{Moved: 1})}}
	stayed := &fakeAgent{moves: []*api.MoveEvent{moved(agent.OutcomeResumed, "b refused: draining"), summary(&api.Summary{Failed: 1})}}
	stopped := &fakeAgent{moves: []*api.MoveEvent{summary(&api.Summary{Error: "not everything was moved within 1s"})}}
	cut := &fakeAgent{}
	goodAt, stayedAt, stoppedAt, cutAt := good.serve(t), stayed.serve(t), stopped.serve(t), cut.serve(t)
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("hots: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nowhere := filepath.Join(t.TempDir(), "none.sock")
	for _, tt := range []struct {
		name string
		args []string
		code int
		out  string // in stdout
		err  string // in stderr
	}{
		{"version", []string{"version"}, 0, peer.Version(), ""},
		{"help", []string{"--help"}, 0, "Exit codes", ""},
		{"completion", []string{"completion", "bash"}, 0, "complete", ""},
		{"unknown command", []string{"fly"}, exitUsage, "", `unknown command "fly"`},
		{"unknown flag", []string{"drain", "--fast"}, exitUsage, "", "unknown flag: --fast"},
		{"bad output", []string{"status", "--output", "xml"}, exitUsage, "", "want table or json"},
		{"migrate what", []string{"migrate"}, exitUsage, "", "give one of FLOW, --all, --process PID and --service NAME"},
		{"migrate both", []string{"migrate", "x", "--all"}, exitUsage, "", "give one of FLOW, --all, --process PID and --service NAME"},
		{"migrate no flow", []string{"migrate", "foo", "--agent", nowhere}, exitUsage, "", "foo"},
		{"no agent", []string{"status", "--agent", nowhere}, exitNoAgent, "", "is it running"},
		{"TCP without certificate", []string{"status", "--agent", "127.0.0.1:1"}, exitUsage, "", "certificate"},
		{"bad configuration", []string{"check", "--config", bad}, exitUsage, "", "field hots not found"},
		{"bad configuration of the agent", []string{"agent", "--config", bad}, exitUsage, "", "field hots not found"},
		{"bad log level", []string{"agent", "--log-level", "loud"}, exitUsage, "", "--log-level"},
		{"migrate", []string{"migrate", "192.0.2.7:1-198.51.100.1:80", "--to", "web-2", "--agent", goodAt}, 0, "moved to web-2  freeze 600 us", ""},
		{"drain", []string{"drain", "--agent", goodAt}, 0, "1 moved, 0 stayed", ""},
		{"one stayed", []string{"drain", "--agent", stayedAt}, exitFailed, "1 stayed", "b refused: draining"},
		{"out of time", []string{"drain", "--timeout", "1s", "--agent", stoppedAt}, exitFailed, "", "not everything was moved"},
		{"agent ended", []string{"drain", "--agent", cutAt}, exitFailed, "", "the agent ended before"},
		{"abort all", []string{"abort", "--agent", goodAt}, 0, "2 aborted", ""},
		{"abort none", []string{"abort", "192.0.2.7:1-198.51.100.1:80", "--agent", goodAt}, exitFailed, "", "not being moved"},
		{"undrain", []string{"undrain", "--agent", goodAt}, 0, "", ""},
		{"no such scenario", []string{"lab", "run", "nothing"}, exitUsage, "", `no scenario "nothing"`},
		{"list", []string{"lab", "list"}, 0, "live-migration", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := command(tt.args...)
			if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nwant in it: %q\nstderr: %s\nwant in it: %q", code, tt.code, out, tt.out, errs, tt.err)
			}
			if code != 0 && tt.err != "" && strings.Contains(out, tt.err) {
				t.Error("the error is on standard output")
			}
		})
	}
	if !good.asked.GetDrain() || good.asked.GetTo() != "" {
		t.Errorf("drain asked for %v", good.asked)
	}
	if stopped.asked.GetTimeoutMicros() != 1_000_000 {
		t.Errorf("--timeout 1s asked for %v", stopped.asked)
	}
}

func TestStatus(t *testing.T) {
	path := (&fakeAgent{}).serve(t)
	code, out, errs := command("status", "--flows", "--agent", path)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, want := range []string{"web-1", "draining", "moved out 7", "198.51.100.1:80", "connection refused", "sent", "192.0.2.7:1-198.51.100.1:80  files"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, errs = command("status", "--flows", "--output", "json", "--agent", path)
	if code != 0 {
		t.Fatal(errs)
	}
	var got struct {
		Status struct {
			Host     string
			Draining bool
		}
		Flows []struct{ Flow string }
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if got.Status.Host != "web-1" || !got.Status.Draining || len(got.Flows) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestMigrateJSON(t *testing.T) {
	f := &fakeAgent{moves: []*api.MoveEvent{
		{Event: &api.MoveEvent_Planned{Planned: &api.Planned{Total: 2}}},
		moved(agent.OutcomeMoved, ""), moved(agent.OutcomeLost, "gone"), summary(&api.Summary{Moved: 1, Lost: 1, FreezeMedianMicros: 600}),
	}}
	code, out, _ := command("migrate", "--all", "--output", "json", "--agent", f.serve(t))
	var got moveSummary
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if code != exitFailed || got.Moved != 1 || got.Lost != 1 || len(got.Connections) != 2 || got.Connections[0].HeldPackets != 3 {
		t.Errorf("exit code %d, %+v", code, got)
	}
}

func TestCheckJSON(t *testing.T) {
	_, out, errs := command("check", "--output", "json")
	var found []agent.Finding
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatalf("%v in %s %s", err, out, errs)
	}
	if len(found) == 0 {
		t.Error("nothing was looked at")
	}
	for _, f := range found {
		if !f.OK && f.Advice == "" {
			t.Errorf("%s: no advice", f.What)
		}
	}
}
