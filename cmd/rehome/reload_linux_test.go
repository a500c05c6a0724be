// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// asCommand makes the test binary rehome itself, for tests that need it as a process.
const asCommand = "REHOME_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// patience bounds every wait of these tests.
const patience = 20 * time.Second

// output is what a process says, line by line.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// greeters say who they are to everybody who connects, and then echo.
func greet(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = fmt.Fprint(c, name)
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// TestHangup runs an entry's agent, and has it read its configuration again: new connections go to the servers that it has now, and those
// that stand stay where they are.
func TestHangup(t *testing.T) {
	topo := netnslab.Standard(2)
	at := netip.AddrPortFrom(topo.VIP4(), 80)
	lab := labtest.New(t, topo)
	client, entry := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "entry")
	for _, name := range []string{"a", "b"} {
		l, err := labtest.Host(t, lab, name).Listen(t.Context(), "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go greet(l, name)
	}
	dir := t.TempDir()
	config, control, state := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "control.sock"), filepath.Join(dir, "notify")
	peers := map[string]string{}
	for i, name := range []string{"a", "b"} {
		peers[name] = fmt.Sprintf("{name: %s, address: %v, id: %d}", name, labtest.Host(t, lab, name).Addr4(), i+1)
	}
	configure := func(more string, servers ...string) {
		t.Helper()
		var known []string
		for _, s := range servers {
			known = append(known, peers[s])
		}
		text := fmt.Sprintf("{host: entry, interfaces: [%s], plaintext: true, listen: '%v:7070', control: %s, applications: %s, gate: {pin: off},\n%s"+
			"peers: [%s], services: [{name: s, addresses: ['%v'], entry: entry, servers: [%s]}]}\n",
			netnslab.Interface, entry.Addr4(), control, filepath.Join(dir, "agent.sock"), more,
			strings.Join(known, ", "), at, strings.Join(servers, ", "))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("", "a")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: state, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	told := func(want ...string) {
		t.Helper()
		for _, w := range want {
			b := make([]byte, 512)
			_ = manager.SetReadDeadline(time.Now().Add(patience))
			n, err := manager.Read(b)
			if err != nil || !strings.HasPrefix(string(b[:n]), w) {
				t.Fatalf("the service manager hears %q, %v; want %q", b[:n], err, w)
			}
		}
	}
	logs := &output{}
	cmd := entry.Command(context.Background(), os.Args[0], "agent", "--config", config)
	cmd.Env = append(os.Environ(), asCommand+"=1", "NOTIFY_SOCKET="+state)
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		if t.Failed() {
			t.Log(logs)
		}
	}()
	told("READY=1")
	connect := func(want string) net.Conn {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := client.Dial(ctx, "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
			t.Fatalf("connected to %q, %v; want %q", b, err, want)
		}
		return c
	}
	// At the start nobody waits for the peers; a reload does.
	link, err := labtest.Host(t, lab, "a").Link()
	if err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, out, errs := command("status", "--agent", control)
		if strings.Contains(out, link.MAC.String()) {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("the agent does not find a: %s %s", out, errs)
		}
	}
	stays := connect("a")
	defer stays.Close()

	configure("", "b")
	_ = cmd.Process.Signal(syscall.SIGHUP)
	told("RELOADING=1\nMONOTONIC_USEC=", "READY=1")
	for range 5 {
		_ = connect("b").Close()
	}
	b := make([]byte, 4)
	if _, err := stays.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stays, b); err != nil || string(b) != "ping" {
		t.Errorf("the connection that stood: %q, %v", b, err)
	}

	// Files that cannot be used, by signal and by command.
	for _, tt := range []struct {
		more string
		code int
		want string
	}{
		{"hots: a,\n", exitUsage, "hots"},
		{"metrics: '127.0.0.1:1',\n", exitFailed, "metrics: cannot be changed by a reload"},
	} {
		configure(tt.more, "a", "b")
		_ = cmd.Process.Signal(syscall.SIGHUP)
		told("RELOADING=1", "READY=1")
		for limit := time.Now().Add(patience); !strings.Contains(logs.String(), tt.want); time.Sleep(time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("the log does not tell of %s", tt.want)
			}
		}
		code, _, errs := command("reload", "--agent", control)
		told("RELOADING=1", "READY=1")
		if code != tt.code || !strings.Contains(errs, tt.want) {
			t.Errorf("exit code %d, want %d: %s", code, tt.code, errs)
		}
		_ = connect("b").Close()
	}
	configure("", "a", "b")
	code, out, errs := command("reload", "--output", "json", "--agent", control)
	told("RELOADING=1", "READY=1")
	var got agentReload
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.Services != 1 || got.Peers != 2 || got.Micros == 0 {
		t.Errorf("exit code %d: %s %s %v", code, out, errs, err)
	}
	seen := map[string]bool{}
	for range 4 {
		c, err := client.Dial(t.Context(), "tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(c, b[:1]); err != nil {
			t.Fatal(err)
		}
		seen[string(b[:1])] = true
		_ = c.Close()
	}
	if !seen["a"] || !seen["b"] {
		t.Errorf("served by %v", seen)
	}
}

// Reload implements api.AgentServer.
func (f *fakeAgent) Reload(context.Context, *api.ReloadRequest) (*api.ReloadResponse, error) {
	if f.reload != codes.OK {
		return nil, status.Error(f.reload, "because")
	}
	return &api.ReloadResponse{Services: 2, Peers: 3, Micros: 130_000}, nil
}

func TestReload(t *testing.T) {
	for _, tt := range []struct {
		answer codes.Code
		code   int
		out    string
		err    string
	}{
		{codes.OK, 0, "2 services, 3 peers in 130ms", ""},
		{codes.InvalidArgument, exitUsage, "", "because"},
		{codes.FailedPrecondition, exitFailed, "", "because"},
		{codes.Unavailable, exitNoAgent, "", "because"},
	} {
		code, out, errs := command("reload", "--agent", (&fakeAgent{reload: tt.answer}).serve(t))
		if code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
			t.Errorf("%v: exit code %d, %q, %q", tt.answer, code, out, errs)
		}
	}
}
