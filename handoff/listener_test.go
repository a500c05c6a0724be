// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestListenRefuses(t *testing.T) {
	tests := []struct {
		name, network string
		cfg           Config
		want          string
	}{
		{"no service", "tcp", Config{}, "Service is empty"},
		{"long service", "tcp", Config{Service: strings.Repeat("x", 256)}, "at most 255"},
		{"negative timeout", "tcp", Config{Service: "x", RecoverTimeout: -1}, "RecoverTimeout"},
		{"network", "unix", Config{Service: "x"}, "want tcp"},
		{"address", "tcp", Config{Service: "x"}, "missing port"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ln, err := Listen(t.Context(), test.network, "127.0.0.1", test.cfg)
			if err == nil {
				_ = ln.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	for _, multipath := range []bool{true, false} {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(multipath)
		inner, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		tcp, ok := inner.(*net.TCPListener)
		if !ok {
			t.Fatalf("got a %T", inner)
		}
		spoken, err := isMultipath(tcp)
		if err != nil {
			t.Fatal(err)
		}
		if spoken != multipath {
			t.Skip("this kernel has Multipath TCP off (net.mptcp.enabled)")
		}
		ln, err := Wrap(tcp, Config{Service: "x", Agent: socketPath(t)})
		if multipath {
			if !errors.Is(err, ErrMultipath) {
				t.Errorf("wrapping a Multipath TCP listener: %v, want ErrMultipath", err)
			}
			_ = inner.Close()
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = ln.Close()
	}
}

// TestWithoutAgent: an ordinary listener, which finds its agent when one comes.
func TestWithoutAgent(t *testing.T) {
	path := socketPath(t)
	ln := listen(t, path, Config{Export: exportNothing})
	client, server := connect(t, ln)
	write(t, client, "x")
	if got := await(t, "read", asyncRead(server, 1)); got.data != "x" || ln.Registered() {
		t.Errorf("read %+v, registered %t", got, ln.Registered())
	}
	agent := startAgent(t, path)
	app := agent.app()
	eventually(t, "registered", ln.Registered)
	closeFD(app.export(1, server.Flow()).fd)
	app.send(1, &wire.Resume{})
	app.send(2, &wire.Ping{})
	expect[*wire.Pong](app, 2)
	agent.kill()
	eventually(t, "not registered", func() bool { return !ln.Registered() })
	_ = ln.Close()
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
	write(t, client, "y")
	if got := await(t, "read", asyncRead(server, 1)); got.data != "y" {
		t.Errorf("after the listener's close: read %+v", got)
	}
}

func TestAgentPath(t *testing.T) {
	t.Setenv(AgentEnvironment, "")
	if got := (Config{}).withDefaults().Agent; got != DefaultAgent {
		t.Errorf("default is %q", got)
	}
	t.Setenv(AgentEnvironment, "/elsewhere")
	if got := (Config{}).withDefaults().Agent; got != "/elsewhere" {
		t.Errorf("environment is ignored: %q", got)
	}
	if got := (Config{Agent: "/mine"}).withDefaults().Agent; got != "/mine" {
		t.Errorf("configuration is ignored: %q", got)
	}
}

// TestList: a thousand connections and more, one of them asked for by name, none twice, none after it has ended.
func TestList(t *testing.T) {
	const count = 1100
	path := socketPath(t)
	agent := startAgent(t, path)
	ln := listen(t, path, Config{Export: exportNothing})
	app := agent.app()
	conns := map[tcprepair.Flow]*Conn{}
	for range count {
		_, c := connect(t, ln)
		conns[c.Flow()] = c
	}
	var first *Conn
	list := func(id uint64) (all []wire.FlowStatus, frames int) {
		t.Helper()
		app.send(id, &wire.List{})
		for {
			m, _ := expect[*wire.Flows](app, id)
			all = append(all, m.Flows...)
			if frames++; m.Last {
				return all, frames
			}
		}
	}
	all, frames := list(1)
	if len(all) != count || frames < 2 {
		t.Errorf("listed %d connections in %d frames, want %d in several", len(all), frames, count)
	}
	seen := map[tcprepair.Flow]bool{}
	for _, s := range all {
		if seen[s.Flow] || conns[s.Flow] == nil || s.Epoch != 1 || !s.Movable || s.Service != "test" || s.Age > time.Hour {
			t.Fatalf("listed %+v", s)
		}
		seen[s.Flow] = true
		first = conns[s.Flow]
	}
	app.send(2, &wire.List{Flow: first.Flow()})
	if m, _ := expect[*wire.Flows](app, 2); len(m.Flows) != 1 || m.Flows[0].Flow != first.Flow() || !m.Last {
		t.Errorf("asked for one, got %+v", m)
	}
	_ = first.Close()
	app.send(3, &wire.List{Flow: first.Flow()})
	if m, _ := expect[*wire.Flows](app, 3); len(m.Flows) != 0 || !m.Last {
		t.Errorf("asked for one that has ended, got %+v", m)
	}
	if all, _ := list(4); len(all) != count-1 {
		t.Errorf("listed %d, want %d", len(all), count-1)
	}
}

// TestHostileAgent: whatever comes, the link is reopened and the server goes on.
func TestHostileAgent(t *testing.T) {
	flow := tcprepair.Flow{}
	encode := func(m wire.Message) []byte {
		b, err := wire.Append(nil, wire.Frame{ID: 9, Message: m})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	chunk := encode(&wire.Chunk{Blob: wire.BlobState, Data: make([]byte, 1<<20-64)})
	tests := []struct {
		name  string
		bytes []byte
		many  int
	}{
		{"noise", []byte("GET / HTTP/1.1\r\n\r\n"), 1},
		{"huge frame", binary.BigEndian.AppendUint32(nil, 1<<31), 1},
		{"unknown kind", []byte{0, 0, 0, 9, 200, 0, 0, 0, 0, 0, 0, 0, 0}, 1},
		{"host-to-host frame", encode(&wire.Offer{Service: "test"}), 1},
		{"an application's own frame", encode(&wire.Registered{}), 1},
		{"import without a socket", encode(&wire.Import{Flow: flow, Service: "test"}), 1},
		{"State without end", chunk, 70},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := socketPath(t)
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			server := listen(t, path, Config{Export: exportNothing})
			for range 2 {
				_ = ln.SetDeadline(time.Now().Add(patience))
				conn, err := ln.AcceptUnix()
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.SetDeadline(time.Now().Add(6 * patience)) // Sixty-four megabytes take their time on a busy machine.
				hello := append(encode(wire.NewHello("bad", "")), encode(&wire.Registered{})...)
				if _, err := conn.Write(hello); err != nil {
					t.Fatal(err)
				}
				for range test.many {
					if _, err := conn.Write(test.bytes); err != nil {
						break
					}
				}
				// The application hangs up: reading ends, by EOF or by the reset that unread bytes cause.
				buf := make([]byte, 4096)
				for err == nil {
					_, err = conn.Read(buf)
				}
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal("the application keeps the link")
				}
				_ = conn.Close()
			}
			client, c := connect(t, server)
			write(t, client, "x")
			if got := await(t, "read", asyncRead(c, 1)); got.data != "x" {
				t.Errorf("read %+v", got)
			}
		})
	}
}

// TestHandshakeRefused: an agent of another version, or one that does not know the service, is asked again later.
func TestHandshakeRefused(t *testing.T) {
	for name, answers := range map[string][]wire.Message{
		"version":  {&wire.Hello{Min: 100, Max: 200}},
		"no hello": {&wire.Ping{}},
		"service":  {wire.NewHello("x", ""), &wire.Refuse{Code: wire.CodeNoService, Reason: "unknown"}},
		"silly":    {wire.NewHello("x", ""), &wire.Pong{}},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			server := listen(t, path, Config{})
			for range 2 {
				_ = ln.SetDeadline(time.Now().Add(patience))
				conn, err := ln.AcceptUnix()
				if err != nil {
					t.Fatal(err)
				}
				link := wire.NewLink(conn)
				for _, m := range answers {
					_ = link.Send(1, m)
				}
				for err == nil {
					_, _, err = link.Receive()
				}
				_ = link.Close()
			}
			if server.Registered() {
				t.Error("it says that it is registered")
			}
			_ = ln.Close()
			startAgent(t, path).app()
			eventually(t, "registered", server.Registered)
		})
	}
}

// TestNothingLeaks moves, fails to move, kills agents and closes, and counts what is left.
func TestNothingLeaks(t *testing.T) {
	goroutines, fds := runtime.NumGoroutine(), openFDs(t)
	t.Run("work", func(t *testing.T) {
		path := socketPath(t)
		agent := startAgent(t, path)
		cfg := Config{Export: exportNothing, Import: func(context.Context, *Conn, State) error { return nil }}
		source := listen(t, path, cfg)
		from := agent.app()
		target := listen(t, path, cfg)
		to := agent.app()
		for id := range uint64(30) {
			_, server := connect(t, source)
			blocked := asyncRead(server, 1)
			switch id % 3 {
			case 0:
				migrate(from, to, id, server.Flow())
				acceptConn(t, target)
			case 1:
				migrate(from, to, id, server.Flow()) // Nobody accepts it.
			case 2:
				e := from.export(id, server.Flow())
				closeFD(e.fd)
				_ = server.Close() // While it is the agent's; the agent dies below.
			}
			await(t, "read", blocked)
		}
		for _, app := range []*fakeApp{from, to} { // They have then seen all that was sent to them.
			app.send(1000, &wire.Ping{})
			expect[*wire.Pong](app, 1000)
		}
		_ = source.Close()
		_ = target.Close()
		agent.kill()
		agent = startAgent(t, path)
		eventually(t, "application is back", func() bool {
			agent.mu.Lock()
			defer agent.mu.Unlock()
			return len(agent.all) > 0
		})
		app := agent.all[0]
		for range 10 {
			r := app.next()
			if r.Message.Kind() != wire.KindRecover {
				t.Fatalf("got %v", r.Message.Kind())
			}
			closeFD(r.fd)
			app.send(r.ID, &wire.Migrated{})
		}
		await(t, "end of the link", app.done)
	})
	eventually(t, "goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "descriptors are closed", func() bool { return openFDs(t) <= fds })
}
