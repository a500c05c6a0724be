// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// movingServer is a server that nobody has changed, and the connections that are live while it moves.
type movingServer struct {
	name    string
	command func(t *testing.T, root string) []string
	traffic func(t *testing.T, root string) []*traffic
}

// filesSize is the size of what is down- and uploaded: more than goes through, slowly, in the time of the moves.
const filesSize = 96 << 20

// shortSize is the size of a file that a server's socket takes whole, and a client's with a small buffer does not.
const shortSize = 100 << 10

func files(t *testing.T, root string) []byte {
	t.Helper()
	content := noise(t, filesSize)
	for name, text := range map[string][]byte{"file": content, "short": content[:shortSize]} {
		if err := os.WriteFile(filepath.Join(root, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return content
}

func movingServers() []movingServer {
	echo := func(*testing.T, string) []*traffic { return []*traffic{ramps(false), ramps(true)} }
	return []movingServer{{
		name:    "C, static",
		command: func(t *testing.T, _ string) []string { return cEcho(t) },
		traffic: echo,
	}, {
		name: "Go",
		command: func(t *testing.T, root string) []string {
			program := filepath.Join(root, "goecho")
			if out, err := exec.Command("go", "build", "-o", program, "./testdata/process/goecho").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			return []string{"env", "GODEBUG=multipathtcp=0,containermaxprocs=0", program, fmt.Sprint(processPort)}
		},
		traffic: echo,
	}, {
		name: "nginx",
		command: func(t *testing.T, root string) []string {
			need(t, "nginx")
			return []string{"nginx", "-p", root, "-c", nginxConfig(t, root), "-g", "daemon off;"}
		},
		traffic: func(t *testing.T, root string) []*traffic {
			content := files(t, root)
			return []*traffic{download(content), upload(root, content), left(content)}
		},
	}, {
		name: "redis",
		command: func(t *testing.T, _ string) []string {
			need(t, "redis-server")
			return []string{"redis-server", "--port", fmt.Sprint(processPort), "--protected-mode", "no", "--save", "", "--bind", "0.0.0.0"}
		},
		traffic: func(*testing.T, string) []*traffic { return []*traffic{values("GET"), values("SET")} },
	}, {
		name: "python3 -m http.server",
		command: func(t *testing.T, root string) []string {
			need(t, "python3")
			return []string{"python3", "-m", "http.server", "--directory", root, fmt.Sprint(processPort)}
		},
		traffic: func(t *testing.T, root string) []*traffic {
			content := files(t, root)
			return []*traffic{download(content), halfClosed(content), longRequest(content)}
		},
	}}
}

// nginxConfig writes the configuration of a master and two workers, which take uploads.
func nginxConfig(t *testing.T, root string) string {
	t.Helper()
	path := filepath.Join(root, "nginx.conf")
	text := fmt.Sprintf(`user root;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	client_max_body_size 0;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen %[2]d reuseport;
		root %[1]s;
		dav_methods PUT;
	}
}
`, root, processPort)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestProcessServers moves each server there and back, with live connections in both directions.
func TestProcessServers(t *testing.T) {
	b := processBed(t, "servers", true)
	for _, s := range movingServers() {
		t.Run(s.name, func(t *testing.T) { moveThereAndBack(t, b, scenario.NewMigrator(b), s) })
	}
}

// moveThereAndBack moves a server under its connections.
func moveThereAndBack(t *testing.T, b *scenario.ProcessBed, m scenario.ProcessMover, kind movingServer) {
	ctx := testContext(t, time.Minute)
	root := t.TempDir()
	server, err := b.Place(ctx, m, kind.command(t, root))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, v6 bool) (*net.TCPConn, error) {
		to := m.Address()
		if v6 {
			to = netip.AddrPortFrom(b.Lab.Topology().VIP6(), to.Port())
		}
		return b.Dial(ctx, to)
	}
	list := kind.traffic(t, root)
	for _, c := range list {
		if err := c.start(ctx, dial); err != nil {
			t.Fatalf("%s: %v; the server says: %s", c.name, err, server.Log())
		}
	}
	progress := func(when string) {
		t.Helper()
		for _, c := range list {
			if err := c.awaitProgress(ctx); err != nil {
				t.Fatalf("%s: %v; the server says: %s", when, err, server.Log())
			}
		}
	}
	progress("at first")
	var longest time.Duration
	for _, to := range []string{"b", "a"} {
		moved, err := m.Move(ctx, server, to)
		longest = max(longest, moved.Freeze)
		if err != nil {
			t.Fatalf("to %s: %v", to, err)
		}
		progress("after the move to " + to)
		t.Logf("to %s: %v, standing still %v, %d bytes", to, moved.Total, moved.Freeze, moved.ImageBytes)
	}
	for _, c := range list {
		info, err := c.finish()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		checkTimeouts(t, int(info.Timeouts), float64(longest.Milliseconds()))
		t.Logf("%s: %d bytes, %d segments sent again", c.name, c.moved.Load(), info.Retransmitted)
	}
}
