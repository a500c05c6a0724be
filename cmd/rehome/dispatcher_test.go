// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher/api"
)

// fakeDispatcher answers as it is told.
type fakeDispatcher struct {
	api.UnimplementedDispatcherServer
	err   error
	asked *api.SetBackendRequest
}

func (f *fakeDispatcher) pools() []*api.Pool {
	return []*api.Pool{{Name: "files", Delivery: "unmodified", Balance: "round-robin", Backends: []*api.Backend{
		{Name: "b1", Host: "b1", Address: "10.0.0.1:7070", Node: 1, State: "up", Weight: 5, ConfiguredWeight: 1, Active: 1 << 40},
		{Name: "b2", Host: "b2", Address: "10.0.0.2:7070", Node: 2, State: "suspect", Weight: 1, ConfiguredWeight: 1, Drained: true},
		{Name: "b3", Host: "b3", Address: "10.0.0.3:7070", Node: 3, State: "drained", Weight: 1, ConfiguredWeight: 1, Draining: true},
	}}}
}

func (f *fakeDispatcher) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	return &api.StatusResponse{
		Host: "front", Version: "v0", Loaded: 1_800_000_000, Pools: f.pools(),
		Table: &api.Table{Flows: 1 << 53, MaxFlows: 1 << 20, Forwarded: 11, Full: 12, Unreachable: 13, Ways: []*api.Way{
			{Interface: "eth0", Shortcut: true}, {Interface: "eth1", Why: "not one end of a veth pair"},
		}},
		Services: []*api.Service{{
			Name: "web", Mode: "http", Addresses: []string{"198.51.100.1:80"}, Peeking: 3, Active: 1 << 41, Routes: 4, DefaultPool: "files",
		}},
	}, f.err
}

func (f *fakeDispatcher) SetBackend(_ context.Context, r *api.SetBackendRequest) (*api.SetBackendResponse, error) {
	f.asked = r
	return &api.SetBackendResponse{Pools: f.pools()}, f.err
}

func (f *fakeDispatcher) Reload(context.Context, *api.ReloadRequest) (*api.ReloadResponse, error) {
	return &api.ReloadResponse{Services: 2, Pools: 3, Routes: 10000, Micros: 130_000}, f.err
}

// serve starts the fake dispatcher and returns the path of its socket.
func (f *fakeDispatcher) serve(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	api.RegisterDispatcherServer(server, f)
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

func TestDispatcherExitCodes(t *testing.T) {
	good := (&fakeDispatcher{}).serve(t)
	failing := func(c codes.Code) string { return (&fakeDispatcher{err: status.Error(c, "because")}).serve(t) }
	dir := t.TempDir()
	bad, nowhere := filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "none.sock")
	if err := os.WriteFile(bad, []byte("hots: a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		out  string // in stdout
		err  string // in stderr
	}{
		{"status", []string{"status", "--control", good}, 0, "web", ""},
		{"reload", []string{"reload", "--control", good}, 0, "2 services, 3 pools, 10000 routes in 130ms", ""},
		{"reload of a wrong file", []string{"reload", "--control", failing(codes.InvalidArgument)}, exitUsage, "", "because"},
		{"reload that needs a restart", []string{"reload", "--control", failing(codes.FailedPrecondition)}, exitFailed, "", "because"},
		{"drain", []string{"drain", "b2", "--control", good}, 0, "files/b2", ""},
		{"drain of nobody", []string{"drain", "b7", "--control", failing(codes.NotFound)}, exitFailed, "", "because"},
		{"drain without a name", []string{"drain", "--control", good}, exitUsage, "", "arg"},
		{"undrain", []string{"undrain", "files/b2", "--control", good}, 0, "files/b2", ""},
		{"weight", []string{"weight", "files/b2", "5", "--control", good}, 0, "files/b2", ""},
		{"weight without a pool", []string{"weight", "b2", "5", "--control", good}, exitUsage, "", "POOL/BACKEND"},
		{"weight that is none", []string{"weight", "files/b2", "-5", "--control", good}, exitUsage, "", ""},
		{"weight too great", []string{"weight", "files/b2", "5000", "--control", failing(codes.InvalidArgument)}, exitUsage, "", "because"},
		{"slow-start", []string{"slow-start", "files/b2", "90s", "--control", good}, 0, "files/b2", ""},
		{"slow-start without a pool", []string{"slow-start", "b2", "90s", "--control", good}, exitUsage, "", "POOL/BACKEND"},
		{"slow-start for no time", []string{"slow-start", "files/b2", "soon", "--control", good}, exitUsage, "", "no duration"},
		{"slow-start too long", []string{"slow-start", "files/b2", "48h", "--control", failing(codes.InvalidArgument)}, exitUsage, "", "because"},
		{"nobody there", []string{"status", "--control", nowhere}, exitNoAgent, "", nowhere},
		{"no address", []string{"status", "--control", "front"}, exitUsage, "", "--control"},
		{"TCP without certificate", []string{"status", "--control", "127.0.0.1:7071"}, exitUsage, "", "--tls-cert"},
		{"run with a wrong file", []string{"--config", bad}, exitUsage, "", "hots"},
		{"run without a file", []string{"--config", bad + "x"}, exitUsage, "", "no such file"},
		{"check of a wrong file", []string{"check", "--config", bad}, exitUsage, "", "hots"},
		{"unknown command", []string{"frobnicate"}, exitUsage, "", "frobnicate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := command(append([]string{"dispatcher"}, tt.args...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d: %s", code, tt.code, errs)
			}
			if !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
				t.Errorf("printed %q and %q, want %q and %q", out, errs, tt.out, tt.err)
			}
			if tt.code != 0 && out != "" {
				t.Errorf("an error is on standard output: %s", out)
			}
		})
	}
}

// TestDispatcherAsks looks at what the commands ask of the dispatcher.
func TestDispatcherAsks(t *testing.T) {
	f := &fakeDispatcher{}
	path := f.serve(t)
	for _, tt := range []struct {
		args []string
		want *api.SetBackendRequest
	}{
		{[]string{"drain", "b2"}, &api.SetBackendRequest{Backend: "b2", Drained: new(true)}},
		{[]string{"drain", "files/b2"}, &api.SetBackendRequest{Pool: "files", Backend: "b2", Drained: new(true)}},
		{[]string{"undrain", "b2:/run/shop.sock"}, &api.SetBackendRequest{Backend: "b2:/run/shop.sock", Drained: new(false)}},
		{[]string{"undrain", "two/b2:/run/shop.sock"}, &api.SetBackendRequest{Pool: "two", Backend: "b2:/run/shop.sock", Drained: new(false)}},
		{[]string{"slow-start", "files/b2", "90s"}, &api.SetBackendRequest{Pool: "files", Backend: "b2", SlowStartMillis: new(int64(90_000))}},
		{[]string{"slow-start", "files/b2", "0"}, &api.SetBackendRequest{Pool: "files", Backend: "b2", SlowStartMillis: new(int64(0))}},
		{[]string{"weight", "files/b2", "0"}, &api.SetBackendRequest{Pool: "files", Backend: "b2", Weight: new(uint32(0))}},
	} {
		if code, _, errs := command(append(append([]string{"dispatcher"}, tt.args...), "--control", path)...); code != 0 {
			t.Errorf("%v: %s", tt.args, errs)
		}
		if diff := cmp.Diff(tt.want, f.asked, protocmp.Transform()); diff != "" {
			t.Errorf("%v: %s", tt.args, diff)
		}
	}
	t.Setenv(dispatcherEnvironment, path)
	if code, _, errs := command("dispatcher", "drain", "env"); code != 0 || f.asked.GetBackend() != "env" {
		t.Errorf("$%s: %s", dispatcherEnvironment, errs)
	}
}

func TestDispatcherStatus(t *testing.T) {
	path := (&fakeDispatcher{}).serve(t)
	code, out, errs := command("dispatcher", "status", "--control", path)
	if code != 0 {
		t.Fatal(errs)
	}
	for _, want := range []string{
		"front", "flows 9007199254740992 of 1048576", "dropped as full 12", "198.51.100.1:80", "5 (configured 1)", "1099511627776",
		"eth0", "at the other end of its veth pair at once", "eth1", "no shortcut: not one end of a veth pair",
		"suspect (drained)", "drained (by its host)", "files/b3",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	code, out, errs = command("dispatcher", "status", "--output", "json", "--control", path)
	if code != 0 {
		t.Fatal(errs)
	}
	// Numbers of 64 bits are numbers.
	var got dispatcherStatus
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if got.Table.Flows != 1<<53 || got.Services[0].Active != 1<<41 || got.Pools[0].Backends[0].Active != 1<<40 || got.Loaded.Unix() != 1_800_000_000 {
		t.Errorf("%+v", got)
	}
	_, out, _ = command("dispatcher", "reload", "--output", "json", "--control", path)
	if !strings.Contains(out, `"micros": 130000`) {
		t.Errorf("reload printed %s", out)
	}
	_, out, _ = command("dispatcher", "drain", "b2", "--output", "json", "--control", path)
	if !strings.Contains(out, `"drained": true`) {
		t.Errorf("drain printed %s", out)
	}
}

// TestDispatcherCheck checks a good configuration, by either command; what the machine lacks is told in the findings.
func TestDispatcherCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dispatcher.yaml")
	text := `{host: front, interfaces: [lo], plaintext: true, peers: [{name: b1, address: 127.0.0.1, mac: "02:00:5e:10:00:01"}],
services: [{name: web, addresses: ["127.0.0.1:80"], mode: http, default: files}],
pools: [{name: files, delivery: linked, backends: [{host: b1}]}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"dispatcher", "check", "--config", path}, {"check", "--dispatcher", path}} {
		_, out, errs := command(append(args, "--output", "json")...)
		var found []agent.Finding
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			t.Fatalf("%v: %v in %s %s", args, err, out, errs)
		}
		seen := map[string]bool{}
		for _, f := range found {
			seen[f.What] = true
			if !f.OK && f.Advice == "" {
				t.Errorf("%s: no advice", f.What)
			}
		}
		for _, want := range []string{"TCP_REPAIR", "interface lo", "peer b1", "address 127.0.0.1 of web", "capability CAP_BPF"} {
			if !seen[want] {
				t.Errorf("%v: %s was not looked at", args, want)
			}
		}
	}
	if code, _, errs := command("check", "--dispatcher", path, "--config", path); code != exitUsage {
		t.Errorf("two configurations: exit code %d: %s", code, errs)
	}
}
