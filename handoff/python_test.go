// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// startPython runs docs/examples/echo.py and returns its address.
func startPython(t *testing.T, agent string) string {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	cmd := exec.Command(python, filepath.Join("..", "docs", "examples", "echo.py"), "--listen", "127.0.0.1:0", "--agent", agent)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() || strings.Contains(stderr.String(), "Traceback") {
			t.Errorf("echo.py: %s", stderr.String())
		}
	})
	port := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if p, ok := strings.CutPrefix(lines.Text(), "listening "); ok {
				port <- p
			}
		}
	}()
	return net.JoinHostPort("127.0.0.1", await(t, "echo.py", port))
}

// echoClient speaks with echo.py.
type echoClient struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
	n    int
}

func dialEcho(t *testing.T, address string) *echoClient {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	return &echoClient{t: t, conn: conn, in: bufio.NewReader(conn)}
}

func (c *echoClient) flow() tcprepair.Flow { return flowOf(c.conn.RemoteAddr(), c.conn.LocalAddr()) }

func (c *echoClient) send(s string) {
	c.t.Helper()
	write(c.t, c.conn, s)
}

// expect wants the answer to a line, with the next number.
func (c *echoClient) expect(line string) {
	c.t.Helper()
	c.n++
	got, err := c.in.ReadString('\n')
	if want := fmt.Sprintf("%d %s\n", c.n, line); got != want || err != nil {
		c.t.Fatalf("got %.100q %v, want %.100q", got, err, want)
	}
}

// TestPython moves connections between two servers in Python, back and forth, with a line begun, with much State, and over the
// death of an agent.
func TestPython(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	first := startPython(t, path)
	apps := []*fakeApp{agent.app()}
	startPython(t, path)
	apps = append(apps, agent.app())
	if diff := cmp.Diff(&wire.Register{Service: "echo", Address: first, Importer: true}, apps[0].register); diff != "" {
		t.Errorf("Register (-want +got):\n%s", diff)
	}
	client := dialEcho(t, first)
	client.send("hello\nwor")
	client.expect("hello")
	for id := range uint64(8) {
		migrate(apps[id%2], apps[1-id%2], id, client.flow())
		client.send("ld\nwor")
		client.expect("world")
	}
	for i, want := range []int{1, 0} {
		apps[i].send(50, &wire.List{})
		m, _ := expect[*wire.Flows](apps[i], 50)
		if len(m.Flows) != want || !m.Last {
			t.Fatalf("server %d lists %+v, want %d connections", i, m, want)
		}
		if want == 1 && (m.Flows[0].Epoch != 9 || m.Flows[0].Flow != client.flow() || m.Flows[0].Service != "echo" || !m.Flows[0].Movable) {
			t.Errorf("listed %+v", m.Flows[0])
		}
	}

	t.Run("resume", func(*testing.T) {
		closeFD(apps[0].export(60, client.flow()).fd)
		client.send("ld\n")
		apps[0].send(60, &wire.Resume{})
		client.expect("world")
	})
	t.Run("large State", func(t *testing.T) {
		line := strings.Repeat("x", 1<<20)
		client.send(line)
		eventually(t, "line is read", func() bool {
			e := apps[0].export(61, client.flow())
			closeFD(e.fd)
			apps[0].send(61, &wire.Resume{})
			return len(e.state) > 1<<20
		})
		migrate(apps[0], apps[1], 62, client.flow())
		client.send("\n")
		client.expect(line)
		migrate(apps[1], apps[0], 63, client.flow())
	})
	t.Run("refusals", func(t *testing.T) {
		apps[0].send(70, &wire.Export{Flow: tcprepair.Flow{Local: client.flow().Remote, Remote: client.flow().Local}})
		if m, _ := expect[*wire.Refuse](apps[0], 70); m.Code != wire.CodeNoFlow {
			t.Errorf("refused by %v", m.Code)
		}
		e := apps[0].export(71, client.flow())
		e.state = []byte("?")
		apps[1].sendImport(71, e, nil)
		if m, _ := expect[*wire.Refuse](apps[1], 71); m.Code != wire.CodeFailed {
			t.Errorf("refused by %v", m.Code)
		}
		apps[0].send(71, &wire.Resume{})
		client.send("on\n")
		client.expect("on")
	})
	t.Run("withdraw", func(*testing.T) {
		e := apps[0].export(72, client.flow())
		apps[1].sendImport(72, e, nil)
		expect[*wire.Imported](apps[1], 72)
		apps[1].send(72, &wire.Withdraw{})
		apps[0].send(72, &wire.Resume{})
		client.send("on\n")
		client.expect("on")
	})
	t.Run("death of the agent", func(t *testing.T) {
		e := apps[0].export(80, client.flow())
		e.late = true
		apps[1].sendImport(80, e, nil)
		expect[*wire.Imported](apps[1], 80)
		client.send("on\n")
		agent.kill()
		agent = startAgent(t, path)
		a, b := agent.app(), agent.app()
		if a.register.Address != first {
			a, b = b, a
		}
		m, fd := expect[*wire.Recover](a, 80)
		closeFD(fd)
		want := &wire.Recover{Flow: client.flow(), Service: "echo", Epoch: 11, Peer: "b"} // after ten moves
		if diff := cmp.Diff(want, m, cmp.Comparer(sameAddr)); diff != "" {
			t.Errorf("Recover of the source (-want +got):\n%s", diff)
		}
		m, fd = expect[*wire.Recover](b, 80)
		closeFD(fd)
		want.Peer, want.Target, want.Late = "", true, true
		if diff := cmp.Diff(want, m, cmp.Comparer(sameAddr)); diff != "" {
			t.Errorf("Recover of the target (-want +got):\n%s", diff)
		}
		a.send(80, &wire.Migrated{})
		b.send(80, &wire.Activate{})
		client.expect("on")
		b.send(81, &wire.Ping{})
		expect[*wire.Pong](b, 81)
	})
}
