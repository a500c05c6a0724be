// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// webServer is a real net/http server on a listener of this package.
type webServer struct {
	ln    *Listener
	app   *fakeApp
	enter chan struct{} // a request to /wait has come
	leave chan struct{} // lets it go
}

func startWeb(t *testing.T, path string, agent *fakeAgent, name string) *webServer {
	t.Helper()
	w := &webServer{enter: make(chan struct{}, 1), leave: make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(rw, "%s %s %d", name, r.URL.Path, len(body))
	})
	mux.HandleFunc("/wait", func(rw http.ResponseWriter, _ *http.Request) {
		w.enter <- struct{}{}
		<-w.leave
		fmt.Fprint(rw, name+" waited")
	})
	mux.HandleFunc("/hijack", func(rw http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	srv := &http.Server{Handler: mux, ReadTimeout: time.Minute, IdleTimeout: time.Minute}
	w.ln = listen(t, path, HTTP(srv, Config{Service: "web"}))
	w.app = agent.app()
	done := make(chan error, 1)
	go func() { done <- srv.Serve(w.ln) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := await(t, "server", done); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return w
}

// flows asks the server for its connections.
func (w *webServer) flow(t *testing.T, id uint64) tcprepair.Flow {
	t.Helper()
	w.app.send(id, &wire.List{})
	m, _ := expect[*wire.Flows](w.app, id)
	if len(m.Flows) != 1 {
		t.Fatalf("listed %+v, want one connection", m.Flows)
	}
	return m.Flows[0].Flow
}

func get(t *testing.T, client *http.Client, url, body string) string {
	t.Helper()
	resp, err := client.Post(url, "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHTTPMoves: one keep-alive connection of an ordinary client is served by two servers in turn.
func TestHTTPMoves(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	servers := []*webServer{startWeb(t, path, agent, "a"), startWeb(t, path, agent, "b")}
	var dials atomic.Int32
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	url := "http://" + servers[0].ln.Addr().String()
	for id := range uint64(10) {
		here, there := servers[id%2], servers[1-id%2]
		size := int(id) * 1000
		want := fmt.Sprintf("%s /x %d", "ab"[id%2:id%2+1], size)
		if got := get(t, client, url+"/x", strings.Repeat("x", size)); got != want {
			t.Fatalf("request %d: %q, want %q", id, got, want)
		}
		migrate(here.app, there.app, id, here.flow(t, 100+id))
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("the client dialled %d times", n)
	}
}

// TestHTTPMovesWhenIdle: a busy connection moves as soon as its response is finished, at once.
func TestHTTPMovesWhenIdle(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	a, b := startWeb(t, path, agent, "a"), startWeb(t, path, agent, "b")
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: patience}
	url := "http://" + a.ln.Addr().String()
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := get(t, client, url+"/wait", ""); got != "a waited" {
			t.Errorf("got %q", got)
		}
	})
	await(t, "request", a.enter)
	flow := a.flow(t, 1)
	a.app.send(2, &wire.Export{Flow: flow, Limit: patience})
	a.leave <- struct{}{}
	e := a.app.awaitExported(2, flow)
	b.app.sendImport(2, e, nil)
	expect[*wire.Imported](b.app, 2)
	a.app.send(2, &wire.Migrated{})
	b.app.send(2, &wire.Activate{})
	wg.Wait()
	if got := get(t, client, url+"/x", ""); got != "b /x 0" {
		t.Errorf("got %q", got)
	}
}

// TestHTTPStays: an export is refused whenever a byte of a request is in the server's hands.
func TestHTTPStays(t *testing.T) {
	const full = "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"
	tests := []struct {
		name    string
		send    string
		answers int // read before the export
		code    wire.Code
	}{
		{"half a first request", "GET /x HT", 0, wire.CodeNotNow},
		{"half of the next request", full + "G", 1, wire.CodeNotNow},
		{"a line of the next request", full + "GET /x HTTP/1.1\r\n", 1, wire.CodeNotNow},
		{"part of a body", full + "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345", 1, wire.CodeNotNow},
		{"hijacked", "GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n", 1, wire.CodeNotMovable},
		{"framing that servers disagree on", "GET /x HTTP/1.1\nHost: x\n\n", 1, wire.CodeNotMovable},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := socketPath(t)
			agent := startAgent(t, path)
			w := startWeb(t, path, agent, "a")
			conn, err := net.Dial("tcp", w.ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(patience))
			write(t, conn, test.send)
			br := bufio.NewReader(conn)
			for range test.answers {
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
			}
			flow := tcprepair.NewFlow(conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort())
			eventually(t, "accepted and read", func() bool {
				c := w.ln.find(flow)
				return c != nil && c.BytesRead() == uint64(len(test.send))
			})
			w.app.send(1, &wire.Export{Flow: flow, Limit: 50 * time.Millisecond})
			if m, _ := expect[*wire.Refuse](w.app, 1); m.Code != test.code {
				t.Errorf("refused by %v %q, want %v", m.Code, m.Reason, test.code)
			}
		})
	}
}

// TestHTTPPipelined: requests that came in one piece are all answered here before the connection moves, and those
// that come later are answered there.
func TestHTTPPipelined(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	a, b := startWeb(t, path, agent, "a"), startWeb(t, path, agent, "b")
	conn, err := net.Dial("tcp", a.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	// The third request's first half is in the server's hands when it could move first.
	write(t, conn, "GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost")
	await(t, "request", a.enter)
	flow := a.flow(t, 1)
	a.app.send(2, &wire.Export{Flow: flow, Limit: patience})
	a.leave <- struct{}{}
	br := bufio.NewReader(conn)
	answer := func(want string) {
		t.Helper()
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != want {
			t.Fatalf("got %q %v, want %q", body, err, want)
		}
	}
	answer("a waited")
	answer("a /2 0")
	write(t, conn, ": x\r\n\r\n")
	answer("a /3 0")
	e := a.app.awaitExported(2, flow)
	write(t, conn, "GET /4 HTTP/1.1\r\nHost: x\r\n\r\n")
	b.app.sendImport(2, e, nil)
	expect[*wire.Imported](b.app, 2)
	a.app.send(2, &wire.Migrated{})
	b.app.send(2, &wire.Activate{})
	answer("b /4 0")
}

// TestHTTPFirstByte: a connection that has not said anything moves too.
func TestHTTPFirstByte(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	a, b := startWeb(t, path, agent, "a"), startWeb(t, path, agent, "b")
	conn, err := net.Dial("tcp", a.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	eventually(t, "accepted", func() bool { return len(a.ln.list()) == 1 })
	migrate(a.app, b.app, 1, a.flow(t, 2))
	write(t, conn, "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	all, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(all), "b /x 0") {
		t.Errorf("got %q, %v", all, err)
	}
}

// TestHTTPOverTLS: keys do not move, and the server goes on.
func TestHTTPOverTLS(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	ts := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "ok") }))
	_ = ts.Listener.Close()
	ln := listen(t, path, HTTP(ts.Config, Config{Service: "web"}))
	app := agent.app()
	ts.Listener = ln
	ts.StartTLS()
	defer ts.Close()
	client := ts.Client()
	client.Transport.(*http.Transport).TLSClientConfig.MinVersion = tls.VersionTLS13
	for id := range uint64(2) {
		if got := get(t, client, ts.URL, ""); got != "ok" {
			t.Fatalf("got %q", got)
		}
		flow := ln.list()[0].Flow()
		app.send(id, &wire.Export{Flow: flow, Limit: 50 * time.Millisecond})
		if m, _ := expect[*wire.Refuse](app, id); m.Code != wire.CodeNotMovable {
			t.Errorf("refused by %v %q", m.Code, m.Reason)
		}
	}
}

// TestHTTPLoad: a client that never rests keeps its one connection, and gets every answer, while it moves all the time.
func TestHTTPLoad(t *testing.T) {
	path := socketPath(t)
	agent := startAgent(t, path)
	servers := []*webServer{startWeb(t, path, agent, "a"), startWeb(t, path, agent, "b")}
	conn, err := net.Dial("tcp", servers[0].ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		br := bufio.NewReader(conn)
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			// Two requests at once, the second in two pieces.
			fmt.Fprintf(conn, "GET /%d HTTP/1.1\r\nHost: x\r\n\r\nPOST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12", n, n)
			fmt.Fprint(conn, "34")
			for _, size := range []int{0, 4} {
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					done <- err
					return
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					done <- err
					return
				}
				if want := fmt.Sprintf("/%d %d", n, size); len(body) < 2 || string(body[2:]) != want {
					done <- fmt.Errorf("got %q, want %q", body, want)
					return
				}
			}
		}
	}()
	flow := tcprepair.NewFlow(conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort())
	eventually(t, "accepted", func() bool { return servers[0].ln.find(flow) != nil })
	for id := range uint64(200) {
		migrate(servers[id%2].app, servers[1-id%2].app, id, flow)
		eventually(t, "activated", func() bool {
			c := servers[1-id%2].ln.find(flow)
			return c != nil && c.Imported()
		})
	}
	close(stop)
	if err := await(t, "client", done); err != nil {
		t.Error(err)
	}
}
