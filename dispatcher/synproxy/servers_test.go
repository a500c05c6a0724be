// SPDX-License-Identifier: Apache-2.0

package synproxy

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
)

// launch starts a program on a host until the test ends.
func launch(t *testing.T, h *netnslab.Host, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
	var out bytes.Buffer
	cmd := h.Command(context.WithoutCancel(t.Context()), name, args...) // ended in order, lest children be left
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", name, out.String())
		}
	})
}

// answers waits until something listens at a host's own address.
func (r *rig) answers(t *testing.T, h *netnslab.Host, port int) {
	t.Helper()
	eventually(t, "the server listens", func() bool {
		c, err := r.client.Dial(t.Context(), "tcp", fmt.Sprintf("%v:%d", h.Addr4(), port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// nginx, as it comes.
func TestNginx(t *testing.T) {
	r := newRig(t, rigConfig{})
	dir := t.TempDir()
	page := ramp(t, 0, 300000)
	conf := fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/pid; error_log stderr; user root root;
events { worker_connections 256; }
http { access_log off; client_max_body_size 10m; client_body_temp_path %[1]s/t; proxy_temp_path %[1]s/t; fastcgi_temp_path %[1]s/t;
uwsgi_temp_path %[1]s/t; scgi_temp_path %[1]s/t; server { listen %[2]d; listen [::]:%[2]d; root %[1]s; location /echo { return 200 "$request_body"; } } }`, dir, port)
	for name, text := range map[string][]byte{"nginx.conf": []byte(conf), "page": page} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	launch(t, r.servers[0], "nginx", "-c", filepath.Join(dir, "nginx.conf"))
	r.answers(t, r.servers[0], port)
	versions(t, func(t *testing.T, v6 bool) {
		for range 20 {
			c := r.dial(t, r.at(v6), 0)
			in := bufio.NewReader(c)
			for i, extra := range []string{"", "", "Connection: close\r\n"} {
				if _, err := fmt.Fprintf(c, "GET /page HTTP/1.1\r\nHost: x\r\n%s\r\n", extra); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					if _, err := in.Peek(1); err != nil {
						t.Fatal(err)
					}
					undisturbed(t, c)
				}
				a, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(a.Body)
				if err != nil || !bytes.Equal(body, page) {
					t.Fatalf("request %d: %d bytes, %v", i, len(body), err)
				}
			}
			if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("%v, want the end", err)
			}
		}
		// Two requests at once.
		c := r.dial(t, r.at(v6), 0)
		if _, err := io.WriteString(c, strings.Repeat("GET /page HTTP/1.1\r\nHost: x\r\n\r\n", 2)); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		for range 2 {
			a, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(a.Body); err != nil || !bytes.Equal(body, page) {
				t.Errorf("%d bytes, %v", len(body), err)
			}
		}
	})
}

// redis: the client speaks first, and little.
func TestRedis(t *testing.T) {
	r := newRig(t, rigConfig{})
	launch(t, r.servers[0], "redis-server", "--port", fmt.Sprint(port), "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", t.TempDir())
	r.answers(t, r.servers[0], port)
	versions(t, func(t *testing.T, v6 bool) {
		c := r.dial(t, r.at(v6), 0)
		in := bufio.NewReader(c)
		for i := range 100 {
			if _, err := fmt.Fprintf(c, "SET key value%d\r\nGET key\r\n", i); err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"+OK\r\n", fmt.Sprintf("$%d\r\n", len(fmt.Sprint("value", i))), fmt.Sprintf("value%d\r\n", i)} {
				if got, err := in.ReadString('\n'); err != nil || got != want {
					t.Fatalf("%q, %v, want %q", got, err, want)
				}
			}
		}
		undisturbed(t, c)
	})
}

// A client that says nothing for a while, and servers that go on for long.
func TestPauses(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := listen(t, r.servers[0], all(port), false)
	c := r.dial(t, r.at(false), 0)
	time.Sleep(time.Second) // before the first byte: nothing but an entry of a map remembers the client
	if s := r.stats(t); s.Undecided != 0 || s.Requests != 0 {
		t.Errorf("%+v", s)
	}
	send(t, "request", c, 0, 100)
	s := accept(t, l)
	expect(t, "request", s, 0, 100)
	for i := range 3 {
		time.Sleep(500 * time.Millisecond)
		var from, to net.Conn = c, s
		if i == 1 {
			from, to = s, c
		}
		transfer(t, "after a pause", from, to, i, 10000)
	}
	undisturbed(t, c)
}
