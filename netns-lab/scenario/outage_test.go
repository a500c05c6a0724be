// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/agent/api"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// setLink takes a host's cable out, or puts it back.
func (s *standing) setLink(t *testing.T, host string, up bool) {
	t.Helper()
	h, err := s.Lab.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		link, err := netlink.LinkByName(netnslab.Interface)
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestTargetUnplugged cuts the target's cable at different moments of a move. Wherever the connection is afterwards, it goes on when
// the cable is back, and at once if it is at the source.
func TestTargetUnplugged(t *testing.T) {
	t.Parallel()
	s := stand(t, "cable", t.TempDir())
	ctx := testContext(t, 2*time.Minute)
	conn, err := s.client.Dial(ctx, "tcp", netip.AddrPortFrom(s.vip, scenario.EchoPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// There and back first, so that the agents' connections stand.
	for range 3 {
		from, flow := s.where(t)
		if _, _, err := s.MoveAll(ctx, from, &api.MoveRequest{Flow: flow.GetFlow(), To: s.next(from)}); err != nil {
			t.Fatal(err)
		}
	}
	for trial, delay := range []time.Duration{0, 300 * time.Microsecond, 800 * time.Microsecond, 1500 * time.Microsecond} {
		if err := echo(conn, fmt.Sprintf("trial %d\n", trial)); err != nil {
			t.Fatal(err)
		}
		source, flow := s.where(t)
		if flow == nil {
			t.Fatalf("trial %d: nobody has the connection", trial)
		}
		target := s.next(source)
		moved := make(chan string, 1)
		go func() {
			list, _, err := s.MoveAll(ctx, source, &api.MoveRequest{Flow: flow.GetFlow(), To: target})
			for _, m := range list {
				moved <- m.GetOutcome() + " " + m.GetError()
				return
			}
			moved <- fmt.Sprint(err)
		}()
		time.Sleep(delay)
		s.setLink(t, target, false)
		outcome := <-moved
		t.Logf("trial %d: cable out after %v: %s", trial, delay, outcome)
		if now, _ := s.where(t); now == source && outcome != agent.OutcomeMoved+" " {
			if err := echo(conn, "without a cable\n"); err != nil {
				t.Errorf("trial %d: the source does not go on: %v", trial, err)
			}
		}
		s.setLink(t, target, true)
		if err := echo(conn, "with a cable\n"); err != nil {
			t.Errorf("trial %d: %v", trial, err)
		}
	}
}

// TestPythonServer moves a connection of a server in another language, which speaks the application protocol by itself.
func TestPythonServer(t *testing.T) {
	t.Parallel()
	need(t, "python3")
	script, err := filepath.Abs("../../docs/examples/echo.py")
	if err != nil {
		t.Fatal(err)
	}
	s := standWith(t, "python", scenario.ClusterConfig{Root: "/", NoServers: true})
	ctx := testContext(t, time.Minute)
	for _, name := range s.Servers() {
		h, err := s.Lab.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		cmd := h.Command(context.Background(), "python3", script, "--service", "echo",
			"--listen", fmt.Sprintf("0.0.0.0:%d", scenario.EchoPort), "--agent", scenario.AgentSocket(s.Lab.Topology().Name, name))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		})
	}
	for _, name := range s.Servers() {
		s.awaitApplications(ctx, t, name)
	}
	var conn net.Conn
	for conn == nil { // until one of them listens
		if conn, err = s.client.Dial(ctx, "tcp", netip.AddrPortFrom(s.vip, scenario.EchoPort).String()); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	say := func(line string) string {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err := fmt.Fprintln(conn, line); err != nil {
			t.Fatal(err)
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	for n := range 9 {
		// Each answer has the line, and the count of lines, which is the connection's State.
		want := fmt.Sprintf("line %d", n)
		if got := say(want); !strings.Contains(got, want) || !strings.Contains(got, fmt.Sprint(n+1)) {
			t.Fatalf("answer %q to line %d", got, n)
		}
		from, flow := s.where(t)
		if flow == nil {
			t.Fatal("nobody has the connection")
		}
		moved, _, err := s.MoveAll(ctx, from, &api.MoveRequest{Flow: flow.GetFlow(), To: s.next(from)})
		if err != nil || len(moved) != 1 || moved[0].GetOutcome() != agent.OutcomeMoved {
			t.Fatalf("from %s: %v %v", from, moved, err)
		}
	}
}

// awaitApplications waits until an application has registered with the host's agent.
func (s *standing) awaitApplications(ctx context.Context, t *testing.T, host string) {
	t.Helper()
	for {
		st, err := s.Status(ctx, host)
		if err == nil && slices.ContainsFunc(st.GetServices(), func(v *api.Service) bool { return v.GetApplications() > 0 }) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s does not register", host)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// where returns the host that has the client's connection, and the connection.
func (s *standing) where(t *testing.T) (string, *api.Flow) {
	t.Helper()
	for _, h := range s.Servers() {
		flows, err := s.Flows(testContext(t, 10*time.Second), h)
		if err != nil {
			t.Fatal(err)
		}
		if len(flows) > 0 {
			return h, flows[0]
		}
	}
	return "", nil
}

func (s *standing) next(host string) string {
	return s.Servers()[(slices.Index(s.Servers(), host)+1)%len(s.Servers())]
}
