// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// serve starts a server that nobody changed, and waits until it listens on port 80 of the server's host.
func (r *rig) serve(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s", name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := r.server.Command(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out.String())
		}
	})
	eventually(t, name+" listens", func() bool {
		c, err := r.server.Dial(t.Context(), "tcp", r.vip4.String()+":80")
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

const page = "<html>unchanged</html>\n"

func webRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "index.html"), []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// get reads one response.
func get(t *testing.T, c net.Conn, b *bufio.Reader) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, body)
}

// fetches checks a server of HTTP: single, long and pipelined requests, and one with the client half-closed.
func (r *rig) fetches(t *testing.T, in *Injector, keepAlive bool) {
	t.Helper()
	const head = "GET / HTTP/1.1\r\nHost: rehome\r\n"
	long := "GET / HTTP/1.1\r\nHost: rehome\r\n"
	for i := range 3 {
		long += fmt.Sprintf("X-Long-%d: %s\r\n", i, strings.Repeat("x", 2000))
	}
	for _, c := range []struct {
		name, request string
		replies       int
		fin           bool
	}{
		{"short", head + "\r\n", 1, false},
		{"several segments", long + "\r\n", 1, false},
		{"pipelined", strings.Repeat(head+"\r\n", 5), 5, false},
		{"half-closed", head + "Connection: close\r\n\r\n", 1, true},
	} {
		if c.replies > 1 && !keepAlive {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			for _, vip := range r.families()[:1] {
				entry := r.entryListener(t, at(vip.vip, 80))
				client, s := r.snapshot(t, entry, []byte(c.request), c.fin)
				if err := in.Inject(s); err != nil {
					t.Fatal(err)
				}
				b := bufio.NewReader(client)
				for range c.replies {
					if got := get(t, client, b); got != "200 "+page {
						t.Fatalf("got %q", got)
					}
				}
				if keepAlive && !c.fin {
					if _, err := client.Write([]byte(head + "\r\n")); err != nil {
						t.Fatal(err)
					}
					if got := get(t, client, b); got != "200 "+page {
						t.Fatalf("next request on the connection: got %q", got)
					}
				}
				undisturbed(t, client)
				_ = entry.Close()
			}
		})
	}
}

func TestNginx(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	root := webRoot(t)
	scratch := t.TempDir()
	config := writeConfig(t, fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events { worker_connections 512; }
http {
  access_log off;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  server { listen 80 reuseport deferred; listen [::]:80; root %[2]s; }
}`, scratch, root))
	r.serve(t, "nginx", "-c", config)
	r.fetches(t, in, true)
	t.Run("IPv6", func(t *testing.T) {
		entry := r.entryListener(t, at(r.vip6, 80))
		client, s := r.snapshot(t, entry, []byte("GET / HTTP/1.0\r\n\r\n"), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		if got := get(t, client, bufio.NewReader(client)); got != "200 "+page {
			t.Fatalf("got %q", got)
		}
	})
}

func TestHAProxy(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	config := writeConfig(t, `global
  maxconn 100
defaults
  mode http
  timeout client 10s
  timeout server 10s
  timeout connect 10s
frontend f
  bind :::80 v4v6 defer-accept tfo
  http-request return status 200 content-type text/html string "<html>unchanged</html>\n"
`)
	r.serve(t, "haproxy", "-f", config, "-db")
	r.fetches(t, in, true)
}

func TestPythonHTTPServer(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	r.serve(t, "python3", "-m", "http.server", "80", "--directory", webRoot(t))
	r.fetches(t, in, false)
}

func TestRedis(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	r.serve(t, "redis-server", "--port", "80", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", "", "--dir", t.TempDir())
	value := strings.Repeat("v", 40_000)
	set := fmt.Sprintf("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n", len(value), value)
	const read = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n"
	want := fmt.Sprintf("+OK\r\n$%d\r\n%s\r\n", len(value), value)
	for _, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		client, s := r.snapshot(t, entry, []byte(set+read), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		_ = client.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		undisturbed(t, client)
	}
}

// Go's listeners are MPTCP sockets unless told otherwise, and the kernel cannot make connections for those.
func TestGoHTTPServer(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	serve := func(mptcp bool) (stop func()) {
		l := listenAt(t, r.server, "[::]:80", mptcp)
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, page) })}
		done := make(chan error, 1)
		go func() { done <- s.Serve(l) }()
		return func() {
			_ = s.Close()
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}
	}
	t.Run("default", func(t *testing.T) {
		stop := serve(true)
		defer stop()
		entry := r.entryListener(t, at(r.vip4, 80))
		_, s := r.snapshot(t, entry, []byte("GET / HTTP/1.0\r\n\r\n"), false)
		if err := in.Inject(s); !errors.Is(err, ErrMPTCP) {
			t.Errorf("Inject: %v; want ErrMPTCP", err)
		}
		_ = entry.Close()
	})
	t.Run("without MPTCP", func(t *testing.T) {
		stop := serve(false)
		defer stop()
		r.fetches(t, in, true)
	})
}

// The listening socket is closed while connections come, again and again. Each is at the server, or has not been made, or is reset, and
// Inject knows which.
func TestListenerGoes(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	const rounds, each = 50, 10
	var made, refused, reset int
	for round := range rounds {
		r.path(t, r.entryMAC)
		waiting := make([]peeked, each)
		for i := range waiting {
			waiting[i] = r.peek(t, entry, ramp(t, 0, 50), false)
		}
		r.path(t, r.serverMAC)
		snapshots := make([]*tcprepair.Snapshot, each)
		for i, p := range waiting {
			snapshots[i] = r.take(t, p)
		}
		server := r.listen(t, "0.0.0.0:80")
		started, closed := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(closed)
			<-started
			for end := time.Now().Add(time.Duration(round) * 4 * time.Microsecond); time.Now().Before(end); {
				continue
			}
			_ = server.Close()
		}()
		close(started)
		errs := make([]error, each)
		for i, s := range snapshots {
			errs[i] = in.Inject(s)
		}
		<-closed
		for i, p := range waiting {
			switch err := errs[i]; {
			case err == nil:
				made++
				// Nobody had accepted it when the listener was closed. A child of one that was about to be closed sends FIN.
				_ = p.client.SetReadDeadline(time.Now().Add(patience))
				if _, err := p.client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, io.EOF) {
					t.Fatalf("made: client sees %v, want the end of what a closed listener had", err)
				}
			case errors.Is(err, ErrReset):
				reset++ // of which the client may not know: see ErrReset
				if n := r.sockets(t, in, snapshots[i]); n != 0 {
					t.Fatalf("%v: %d sockets left", err, n)
				}
			case errors.Is(err, ErrNoListener):
				refused++
				if n := r.sockets(t, in, snapshots[i]); n != 0 {
					t.Fatalf("%v: %d sockets left", err, n)
				}
				if info, err := netnslab.ReadTCPInfo(p.client); err != nil || info.State != uint8(tcprepair.Established) {
					t.Fatalf("refused: client in state %d, %v", info.State, err)
				}
			default:
				t.Fatal(err)
			}
			_ = p.client.SetLinger(0)
			_ = p.client.Close()
		}
	}
	t.Logf("%d made, %d refused, %d reset", made, refused, reset)
	if made == 0 || refused == 0 {
		t.Errorf("%d made, %d refused: nothing was raced", made, refused)
	}
}
