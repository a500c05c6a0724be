// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// standing is a cluster for the tests of one file, with one client.
type standing struct {
	*scenario.Cluster
	client *netnslab.Host
	vip    netip.Addr
}

func stand(t *testing.T, kind, root string, serve ...string) *standing {
	t.Helper()
	return standWith(t, kind, scenario.ClusterConfig{Root: root, Serve: serve})
}

func standWith(t *testing.T, kind string, cfg scenario.ClusterConfig) *standing {
	t.Helper()
	topo := netnslab.Standard(3)
	topo.Name = labName(kind)
	cfg.Topology, cfg.Command = topo, binary(t)
	c, err := scenario.StartCluster(testContext(t, 2*time.Minute), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		checkGone(t, topo.Name)
	})
	client, err := c.Lab.Host("client")
	if err != nil {
		t.Fatal(err)
	}
	return &standing{Cluster: c, client: client, vip: topo.VIP4()}
}

// moveWhile moves every connection around the servers until work has ended, and returns its error and the number of moves.
func (s *standing) moveWhile(t *testing.T, work func() error) int {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- work() }()
	moves := 0
	ctx := testContext(t, 2*time.Minute)
	for i := 0; ; i++ {
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return moves
		case <-time.After(30 * time.Millisecond):
		}
		from := s.Servers()[i%3]
		moved, _, err := s.MoveAll(ctx, from, &api.MoveRequest{To: s.Servers()[(i+1)%3]})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range moved {
			switch m.GetOutcome() {
			case agent.OutcomeMoved:
				moves++
			case agent.OutcomeGone:
			default:
				t.Errorf("%s: %s: %s", m.GetFlow(), m.GetOutcome(), m.GetError())
			}
		}
	}
}

// TestOrdinaryClients lets programs that others wrote work while their connections move.
func TestOrdinaryClients(t *testing.T) {
	t.Parallel()
	binary(t)
	root := t.TempDir()
	content := make([]byte, 24<<20)
	if _, err := (netnslab.Noise{Seed: 3, Size: int64(len(content))}).ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	s := stand(t, "clients", root)
	files := netip.AddrPortFrom(s.vip, scenario.FilesPort).String()

	t.Run("wget", func(t *testing.T) {
		need(t, "wget")
		var out bytes.Buffer
		moves := s.moveWhile(t, func() error {
			cmd := s.client.Command(context.Background(), "wget", "--quiet", "--tries=1", "--limit-rate=12m", "--output-document=-", "http://"+files+"/file")
			cmd.Stdout = &out
			return cmd.Run()
		})
		if sha256.Sum256(out.Bytes()) != sha256.Sum256(content) {
			t.Errorf("%d bytes came, and they differ", out.Len())
		}
		atLeast(t, moves, 5)
	})
	t.Run("curl, many requests over one connection", func(t *testing.T) {
		need(t, "curl")
		urls := make([]string, 0, 20)
		for range 10 {
			urls = append(urls, "http://"+files+"/file")
		}
		var out bytes.Buffer
		moves := s.moveWhile(t, func() error {
			args := append([]string{"--silent", "--fail", "--limit-rate", "60M", "--write-out", "%{stderr}%{num_connects}\n"}, urls...)
			cmd := s.client.Command(context.Background(), "curl", args...)
			cmd.Stdout = &out
			var connects bytes.Buffer
			cmd.Stderr = &connects
			err := cmd.Run()
			if n := strings.Count(connects.String(), "1"); n != 1 {
				t.Errorf("curl connected %d times: %q", n, connects.String())
			}
			return err
		})
		if !bytes.Equal(out.Bytes(), bytes.Repeat(content, len(urls))) {
			t.Errorf("%d bytes came, and they differ", out.Len())
		}
		atLeast(t, moves, 5)
	})
	t.Run("netcat, typed into", func(t *testing.T) {
		need(t, "nc")
		moves := s.moveWhile(t, func() error { return s.typeIntoNetcat() })
		atLeast(t, moves, 5)
	})
	t.Run("WebSocket", func(t *testing.T) {
		moves := s.moveWhile(t, func() error { return s.chat(files) })
		atLeast(t, moves, 5)
	})
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
}

func atLeast(t *testing.T, moves, want int) {
	t.Helper()
	if t.Logf("%d moves", moves); moves < want {
		t.Errorf("%d moves, want at least %d", moves, want)
	}
}

// typeIntoNetcat is somebody at a terminal: a line, its echo, the next line.
func (s *standing) typeIntoNetcat() error {
	cmd := s.client.Command(context.Background(), "nc", s.vip.String(), fmt.Sprint(scenario.EchoPort))
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for i := range 100 {
		want := fmt.Sprintf("line %d", i)
		if _, err := io.WriteString(in, want+"\n"); err != nil {
			return err
		}
		if !lines.Scan() {
			return fmt.Errorf("no more lines, want %q: %w", want, lines.Err())
		}
		if lines.Text() != want {
			return fmt.Errorf("got %q, want %q", lines.Text(), want)
		}
		time.Sleep(10 * time.Millisecond) // somebody types
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return nil
}

// chat exchanges messages of all sizes over a WebSocket.
func (s *standing) chat(address string) error {
	conn, err := s.client.Dial(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	cfg, err := websocket.NewConfig("ws://"+address+"/chat", "http://"+address)
	if err != nil {
		return err
	}
	ws, err := websocket.NewClient(cfg, conn)
	if err != nil {
		return err
	}
	for i := range 300 {
		want := strings.Repeat(string(rune('a'+i%26)), 1+i*211%60000)
		var got string
		if err := websocket.Message.Send(ws, want); err != nil {
			return err
		}
		if err := websocket.Message.Receive(ws, &got); err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("message %d: %d bytes came back of %d", i, len(got), len(want))
		}
		time.Sleep(3 * time.Millisecond) // a conversation
	}
	return ws.Close()
}

// TestLargeState moves connections whose applications know much: State far beyond a frame, and State sent ahead.
func TestLargeState(t *testing.T) {
	t.Parallel()
	s := stand(t, "state", t.TempDir(), "--state-bytes", fmt.Sprint(5<<20), "--ahead-bytes", fmt.Sprint(9<<20))
	conn, err := s.client.Dial(context.Background(), "tcp", netip.AddrPortFrom(s.vip, scenario.EchoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 6 {
		if err := echo(conn, fmt.Sprintf("line %d\n", i)); err != nil {
			t.Fatal(err)
		}
		for h, from := range s.Servers() {
			moved, _, err := s.MoveAll(testContext(t, time.Minute), from, &api.MoveRequest{To: s.Servers()[(h+1)%3]})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range moved {
				if m.GetOutcome() != agent.OutcomeMoved || m.GetStateBytes() < 5<<20 {
					t.Errorf("%s: %s, State of %d bytes", m.GetOutcome(), m.GetError(), m.GetStateBytes())
				}
				t.Logf("freeze %d us of %d us in all", m.GetFreezeMicros(), m.GetTotalMicros())
			}
		}
	}
	if err := echo(conn, "the end\n"); err != nil {
		t.Fatal(err)
	}
}

func echo(conn net.Conn, line string) error {
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, line); err != nil {
		return err
	}
	got := make([]byte, len(line))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != line {
		return fmt.Errorf("got %q, want %q", got, line)
	}
	return nil
}

// TestRefusals asks for moves that cannot be: each says why, and the connection goes on.
func TestRefusals(t *testing.T) {
	t.Parallel()
	s := stand(t, "refuse", t.TempDir())
	conn, err := s.client.Dial(context.Background(), "tcp", netip.AddrPortFrom(s.vip, scenario.EchoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := echo(conn, "before\n"); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t, time.Minute)
	var host string
	var flow *api.Flow
	for _, h := range s.Servers() {
		flows, err := s.Flows(ctx, h)
		if err != nil {
			t.Fatal(err)
		}
		if len(flows) > 0 {
			host, flow = h, flows[0]
		}
	}
	others := []string{}
	for _, h := range s.Servers() {
		if h != host {
			others = append(others, h)
		}
	}
	if err := s.KillServer(others[0]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.MoveAll(ctx, others[1], &api.MoveRequest{Drain: true}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		req  *api.MoveRequest
		want string
	}{
		{"nobody there imports", &api.MoveRequest{Flow: flow.GetFlow(), To: others[0]}, "no application here imports echo"},
		{"it is draining", &api.MoveRequest{Flow: flow.GetFlow(), To: others[1]}, "draining"},
		{"it is here", &api.MoveRequest{Flow: flow.GetFlow(), To: host}, "on this host already"},
		{"no such host", &api.MoveRequest{Flow: flow.GetFlow(), To: "nowhere"}, "no configured peer"},
		{"no server of the service", &api.MoveRequest{Flow: flow.GetFlow(), To: "entry"}, "no such service"},
		{"no such flow", &api.MoveRequest{Flow: "192.0.2.1:1-192.0.2.2:2", To: others[1]}, "no application on this host"},
		{"no flow at all", &api.MoveRequest{Flow: "x", To: others[1]}, "flow"},
	} {
		moved, _, err := s.MoveAll(ctx, host, tt.req)
		text := fmt.Sprint(err)
		for _, m := range moved {
			text += m.GetError()
			if m.GetOutcome() == agent.OutcomeMoved {
				t.Errorf("%s: moved", tt.name)
			}
		}
		if !strings.Contains(text, tt.want) {
			t.Errorf("%s: %q, want %q in it", tt.name, text, tt.want)
		}
		if err := echo(conn, tt.name+"\n"); err != nil {
			t.Errorf("%s: the connection does not go on: %v", tt.name, err)
		}
	}
	c, err := s.Client(host)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := c.Abort(ctx, &api.AbortRequest{}); err != nil || r.GetAborted() != 0 {
		t.Errorf("abort of nothing: %v %v", r, err)
	}
	if _, err := c.Abort(ctx, &api.AbortRequest{Flow: flow.GetFlow()}); err == nil {
		t.Error("aborted what was not being moved")
	}
}

// TestDrainReachesEntry drains a server while its entry's agent is dead: the operator must hear that new connections still
// come, and the entry must be told as soon as it lives again.
func TestDrainReachesEntry(t *testing.T) {
	t.Parallel()
	s := stand(t, "tell", t.TempDir())
	ctx := testContext(t, time.Minute)
	if err := s.KillAgent("entry"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.MoveAll(ctx, "a", &api.MoveRequest{Drain: true}); err == nil || !strings.Contains(err.Error(), "could not be told") {
		t.Errorf("a drain that the entry knows nothing of: %v", err)
	}
	if _, _, err := s.MoveAll(ctx, "a", &api.MoveRequest{Service: "nonsense"}); err == nil || !strings.Contains(err.Error(), "no service") {
		t.Errorf("an unknown service: %v", err)
	}
	if err := s.StartAgent(ctx, "entry"); err != nil {
		t.Fatal(err)
	}
	// Connections come until the entry has been told, and then no more.
	quiet := 0
	for quiet < 6 {
		conn, err := s.client.Dial(ctx, "tcp", netip.AddrPortFrom(s.vip, scenario.EchoPort).String())
		if err != nil {
			t.Fatal(err)
		}
		if err := echo(conn, "hello\n"); err != nil {
			t.Fatal(err)
		}
		flows, err := s.Flows(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		if quiet++; len(flows) > 0 {
			quiet = 0
		}
		_ = conn.Close()
		// The next look must not see this connection's end.
		for len(flows) > 0 {
			if flows, err = s.Flows(ctx, "a"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, _, err := s.MoveAll(ctx, "a", &api.MoveRequest{Drain: true}); err != nil {
		t.Errorf("draining again: %v", err)
	}
}

// TestScripts runs the walk-throughs.
func TestScripts(t *testing.T) {
	t.Parallel()
	program := binary(t)[0]
	if _, err := os.Stat("../../bin/rehome"); err != nil {
		t.Skip("the scripts use bin/rehome: make build")
	}
	if same, err := sameFile(program, "../../bin/rehome"); err != nil || !same {
		t.Skipf("the program under test is not bin/rehome: %v", err)
	}
	need(t, "curl")
	for script, want := range map[string]string{
		"live-migration.sh": "the download is whole", "drain.sh": "no client noticed", "agent-upgrade.sh": "the download is whole",
		"process-migration.sh": "the download is whole",
	} {
		t.Run(script, func(t *testing.T) {
			if script == "process-migration.sh" {
				need(t, "python3")
				if _, err := scenario.FindCRIU(t.Context(), ""); err != nil {
					t.Skip(err)
				}
			}
			out, err := exec.CommandContext(testContext(t, 2*time.Minute), "../"+script).CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) {
				t.Errorf("%v, want %q in:\n%s", err, want, out)
			}
		})
	}
}

func sameFile(a, b string) (bool, error) {
	ai, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	bi, err := os.Stat(b)
	if err != nil {
		return false, err
	}
	return os.SameFile(ai, bi), nil
}
