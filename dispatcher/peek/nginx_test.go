// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// nginxConfig answers every request with what it took it for. Only the last of the three can have a "|" in it.
const nginxConfig = `daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 64; }
http {
	access_log off; keepalive_timeout 0; lingering_close off; default_type text/plain;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen unix:%[1]s/socket; location / { return 200 "$request_method|$host|$uri"; } }
}
`

// startNginx returns the path of the UNIX socket that an nginx listens on until the test ends.
func startNginx(t *testing.T) string {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed")
	}
	// Not t.TempDir: a socket's path is short.
	dir, err := os.MkdirTemp("", "peek")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, nginxConfig, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", file)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	socket := filepath.Join(dir, "socket")
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for range 2000 {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return socket
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("nginx: %v\n%s", err, output.String())
		case <-poll.C:
		}
	}
	t.Fatal("nginx does not listen")
	return ""
}

// askNginx sends b and returns the status and what nginx took the first request for.
func askNginx(t *testing.T, socket string, b []byte) (code int, method, host, path string) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", b, err)
	}
	body, _ := io.ReadAll(r.Body)
	method, rest, _ := strings.Cut(string(body), "|")
	host, path, _ = strings.Cut(rest, "|")
	return r.StatusCode, method, host, path
}

// TestHTTP1AgreesWithNginx sends requests that the parser accepts, usual and odd ones, to a real nginx. What nginx accepts, too,
// it must take for the same.
func TestHTTP1AgreesWithNginx(t *testing.T) {
	socket := startNginx(t)
	p := newParser(t, Config{})
	var heads [][]byte
	for _, c := range goodHeads {
		heads = append(heads, []byte(c.head))
	}
	original := len(heads)
	for _, c := range badHeads {
		heads = append(heads, []byte(c.head))
	}
	pieces := []string{
		"/", "//", "%2F", "%2e", "..", ".", "%25", "%", "?", "#", ";", "\\", "http://", "@", ":", "a", "\r\n", "\n", "\r", " ", "\t",
		"Host: b\r\n", "Host:\r\n", "X: y\r\n", "\x00", "\x7f", "\xff", "&", "*", "HTTP/1.1", "[::1]", "80", ",", "_", "-",
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		b := bytes.Clone(heads[random.IntN(original)])
		for range 1 + random.IntN(3) {
			at, piece := random.IntN(len(b)+1), pieces[random.IntN(len(pieces))]
			b = append(b[:at:at], append([]byte(piece), b[min(len(b), at+random.IntN(3)):]...)...)
		}
		heads = append(heads, b)
	}
	sent, agreed := 0, 0
	for _, head := range heads {
		var g Progress
		key, err := p.Parse(&g, head)
		if err != nil {
			continue
		}
		sent++
		code, method, host, path := askNginx(t, socket, head[:key.Len])
		if code != http.StatusOK || method == "" {
			continue
		}
		agreed++
		// Without a host nginx says its server's name, which is empty here.
		if h, _ := parseHost(host); method != key.Method || h != key.Host || path != key.Path {
			t.Errorf("%q: nginx %q %q %q, here %q %q %q", head, method, host, path, key.Method, key.Host, key.Path)
		}
	}
	t.Logf("%d requests accepted here, %d by nginx, too", sent, agreed)
	if agreed < 1000 {
		t.Errorf("only %d requests compared", agreed)
	}
}
