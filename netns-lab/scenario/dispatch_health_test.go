// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/dispatcher/health"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

const (
	checkedPort = 8090
	checkedPool = "checked"
)

// checkedNginx is an nginx of a test's own.
const checkedNginx = `daemon off;
user root root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log;
events { worker_connections 1024; }
http {
	access_log off;
	root %[1]s;
	client_body_temp_path %[1]s/tmp;
	proxy_temp_path %[1]s/tmp;
	fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp;
	scgi_temp_path %[1]s/tmp;
	server { listen 8090; }
}
`

// checkedServer is an nginx on a backend, which says whose it is, and that it is well as long as there is a page that says so.
type checkedServer struct {
	host *netnslab.Host
	dir  string
	cmd  *netnslab.Cmd
}

func newCheckedServer(t *testing.T, o *operated, host string) *checkedServer {
	t.Helper()
	h, err := o.Lab.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	s := &checkedServer{host: h, dir: t.TempDir()}
	if err := os.Chmod(s.dir, 0o755); err != nil { //nolint:gosec // nginx's workers read it
		t.Fatal(err)
	}
	s.write(t, "nginx.conf", fmt.Sprintf(checkedNginx, s.dir))
	s.write(t, "who", host)
	s.write(t, "well", "I am well")
	s.start(t)
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *checkedServer) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // nginx's workers read it
		t.Fatal(err)
	}
}

func (s *checkedServer) start(t *testing.T) {
	t.Helper()
	s.cmd = s.host.Command(t.Context(), "nginx", "-c", filepath.Join(s.dir, "nginx.conf"))
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// stop ends it in order, by its pid.
func (s *checkedServer) stop(t *testing.T) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(unix.SIGTERM)
	_ = s.cmd.Wait() // also when the test's end has killed it
	s.cmd = nil
}

// healthOf returns what the operator sees of a pool's backends: their states, and what their checks say.
func (o *operated) healthOf(t *testing.T, pool string) map[string][2]string {
	t.Helper()
	out, _ := o.order(t, 0, "status", "--output", "json")
	var st struct {
		Pools []struct {
			Name     string
			Backends []struct{ Host, State, Health string }
		}
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	all := make(map[string][2]string)
	for _, p := range st.Pools {
		for _, b := range p.Backends {
			if p.Name == pool {
				all[b.Host] = [2]string{b.State, b.Health}
			}
		}
	}
	return all
}

// becomes waits until the operator sees a pool's backend so.
func (o *operated) becomes(t *testing.T, pool, host, state, found string) {
	t.Helper()
	begin := time.Now()
	for {
		now := o.healthOf(t, pool)
		if now[host] == [2]string{state, found} {
			t.Logf("%s of %s is %s after %v", host, pool, state, time.Since(begin).Round(time.Millisecond))
			return
		}
		if time.Since(begin) > 5*time.Second {
			out, _ := o.order(t, 0, "status")
			t.Fatalf("%s: %v, want %s %s, %s\n%s\n%s", pool, now, host, state, found, out, o.Logs(scenario.FrontHost))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// asked makes connections, all of which must be served by the backend that was chosen first, and returns how many each host has served.
func (o *operated) asked(t *testing.T, n int) map[string]int {
	t.Helper()
	before, _ := o.metric(t, "handoff_failures_total", "")
	by := make(map[string]int)
	c := client(o.Client())
	for i := range n {
		answer, err := get(c, fmt.Sprintf("http://%v/who", netip.AddrPortFrom(o.vip(), checkedPort)))
		if err != nil {
			t.Fatalf("connection %d: %v\n%s", i, err, o.Logs(scenario.FrontHost))
		}
		by[answer]++
	}
	if after, _ := o.metric(t, "handoff_failures_total", ""); after != before {
		t.Errorf("%v backends did not take what they were given", after-before)
	}
	return by
}

// client returns one that connects from a host anew for every request.
func client(h *netnslab.Host) *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
}

func get(c *http.Client, url string) (string, error) {
	answer, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close() //nolint:errcheck // read in whole
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = errors.New(answer.Status)
	}
	return string(body), err
}

// metric adds up the dispatcher's metric of a name, over those of its labels that a text stands in.
func (o *operated) metric(t *testing.T, name, labels string) (sum float64, found bool) {
	t.Helper()
	front, err := o.Lab.Host(scenario.FrontHost)
	if err != nil {
		t.Fatal(err)
	}
	text, err := get(client(front), "http://127.0.0.1:9101/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		at, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !strings.HasPrefix(at, "rehome_dispatcher_"+name) || !strings.Contains(at, labels) {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+v, true
	}
	return sum, found
}

// TestDispatcherChecks stops one of two servers, and takes the other's page away: in each case connections go to the other alone, without being
// tried where they cannot be served, and the server comes back when it is well again.
func TestDispatcherChecks(t *testing.T) {
	t.Parallel()
	lab := labName("checks")
	topo := scenario.DispatchTopology(lab)
	pool := dispatcher.PoolConfig{
		Name: checkedPool, Delivery: dispatcher.DeliveryUnmodified,
		Backends: []dispatcher.BackendConfig{{Host: scenario.NginxHost}, {Host: scenario.MixedHost}},
		Health: &dispatcher.HealthConfig{
			Type: health.HTTP, Path: "/well", Expect: "I am well", Interval: 50 * time.Millisecond, Timeout: time.Second, Rise: 2, Fall: 2,
		},
	}
	at := []netip.AddrPort{netip.AddrPortFrom(topo.VIP4(), checkedPort)}
	o := &operated{lab: lab, cmd: binary(t)}
	o.Farm = farm(t, scenario.FarmConfig{Lab: lab, Agents: true, Adjust: func(c *agent.Config) {
		scenario.DispatchedAgents(topo.VIPs)(c)
		c.Services = append(c.Services, agent.ServiceConfig{
			Name: checkedPool, Addresses: at, Entry: scenario.FrontHost, Servers: []string{scenario.NginxHost, scenario.MixedHost},
		})
	}})
	startFront(t, o.Farm, scenario.RehomeAdjusted(func(c *dispatcher.Config) {
		c.Checks.Addresses = []netip.Prefix{netip.MustParsePrefix("10.77.0.250/24")}
		c.Services = append(c.Services, dispatcher.ServiceConfig{Name: checkedPool, Mode: dispatcher.ModeHTTP, Addresses: at, Default: checkedPool})
		c.Pools = append(c.Pools, pool)
	}))
	b2, b3 := newCheckedServer(t, o, scenario.NginxHost), newCheckedServer(t, o, scenario.MixedHost)
	both := func(when string) {
		t.Helper()
		o.becomes(t, checkedPool, scenario.NginxHost, "up", "up")
		o.becomes(t, checkedPool, scenario.MixedHost, "up", "up")
		if by := o.asked(t, 20); by[scenario.NginxHost] != 10 || by[scenario.MixedHost] != 10 {
			t.Errorf("%s: %v, want 10 connections for each", when, by)
		}
	}
	without := func(out, other, when string) {
		t.Helper()
		o.becomes(t, checkedPool, out, "unhealthy", "down")
		if by := o.asked(t, 20); by[other] != 20 {
			t.Errorf("%s: %v, want all at %s", when, by, other)
		}
		if v, found := o.metric(t, "backend_healthy", out); v != 0 || !found {
			t.Errorf("%s: backend_healthy %v, there: %v", when, v, found)
		}
	}
	both("at first")
	b2.stop(t)
	without(scenario.NginxHost, scenario.MixedHost, "b2 stopped")
	b2.start(t)
	both("b2 started again")
	if err := os.Remove(filepath.Join(b3.dir, "well")); err != nil {
		t.Fatal(err)
	}
	without(scenario.MixedHost, scenario.NginxHost, "b3 ill")
	b3.write(t, "well", "I am well")
	both("b3 well again")

	// A pool that is not checked any more forgets what was found.
	b2.stop(t)
	o.becomes(t, checkedPool, scenario.NginxHost, "unhealthy", "down")
	o.reload(t, func(c *dispatcher.Config) { c.Pools[len(c.Pools)-1].Health = nil })
	o.becomes(t, checkedPool, scenario.NginxHost, "up", "")
	b2.start(t)
	o.reload(t, func(c *dispatcher.Config) { c.Pools[len(c.Pools)-1].Health = pool.Health })
	both("checked again")
}
