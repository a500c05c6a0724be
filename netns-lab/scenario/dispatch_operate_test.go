// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// operated is a dispatcher in a farm, and its operator.
type operated struct {
	*scenario.Farm
	front scenario.FrontReloader
	lab   string
	cmd   []string
}

// operate stands a farm up behind a dispatcher.
func operate(t *testing.T, kind string) *operated {
	t.Helper()
	lab := labName(kind)
	o := &operated{lab: lab, cmd: binary(t)}
	o.Farm = farm(t, scenario.FarmConfig{Lab: lab, Agents: true, Adjust: scenario.DispatchedAgents(scenario.DispatchTopology(lab).VIPs)})
	var ok bool
	if o.front, ok = scenario.Rehome().(scenario.FrontReloader); !ok {
		t.Fatal("the dispatcher cannot be reloaded")
	}
	startFront(t, o.Farm, o.front)
	return o
}

// run runs a command of the operator's, on the dispatcher's host, and returns its exit code and what it printed.
func (o *operated) run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	h, err := o.Lab.Host(scenario.FrontHost)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs strings.Builder
	c := h.Command(testContext(t, time.Minute), o.cmd[0], append(slices.Clone(o.cmd[1:]), args...)...)
	c.Stdout, c.Stderr = &out, &errs
	err = c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String(), errs.String()
}

// order runs "rehome dispatcher", and checks its exit code.
func (o *operated) order(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	args = append(append([]string{"dispatcher"}, args...), "--control", scenario.ControlSocket(o.lab, scenario.FrontHost))
	got, out, errs := o.run(t, args...)
	if got != code {
		t.Errorf("%v: exit code %d, want %d: %s%s", args, got, code, out, errs)
	}
	return out, errs
}

// file is the dispatcher's configuration.
func (o *operated) file() string {
	return filepath.Join(scenario.ClusterDir(o.lab), scenario.FrontHost, "dispatcher.yaml")
}

// reload changes the configuration.
func (o *operated) reload(t *testing.T, change func(*dispatcher.Config)) {
	t.Helper()
	cfg, err := dispatcher.LoadConfig(o.file())
	if err != nil {
		t.Fatal(err)
	}
	change(&cfg)
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.file(), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	o.order(t, 0, "reload")
}

// asks checks whether a service answers.
func (o *operated) asks(t *testing.T, s scenario.Service, want bool) {
	t.Helper()
	if err := o.Ask(testContext(t, time.Minute), o.front, s); (err == nil) != want {
		t.Errorf("%s: %v, want an answer: %v\n%s", s, err, want, o.Logs(scenario.FrontHost))
	}
}

// dial connects to a port of the virtual address.
func (o *operated) dial(port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return o.Client().Dial(ctx, "tcp", netip.AddrPortFrom(o.vip(), port).String())
}

func (o *operated) vip() netip.Addr { return o.Lab.Topology().VIPs[0] }

// session is a connection to redis that has been handed off.
type session struct {
	net.Conn
	answers *bufio.Reader
}

func (o *operated) session(t *testing.T) *session {
	t.Helper()
	c, err := o.dial(scenario.Store.Port())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	s := &session{c, bufio.NewReader(c)}
	s.lives(t, "at first")
	return s
}

func (s *session) lives(t *testing.T, when string) {
	t.Helper()
	_ = s.SetDeadline(time.Now().Add(5 * time.Second))
	_, err := io.WriteString(s, "PING\r\n")
	if err == nil {
		var line string
		if line, err = s.answers.ReadString('\n'); err == nil && line != "+PONG\r\n" {
			err = fmt.Errorf("redis says %q", line)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

func TestDispatcherOperated(t *testing.T) {
	o := operate(t, "oper")
	t.Run("status", func(t *testing.T) {
		out, _ := o.order(t, 0, "status", "--output", "json")
		var st struct {
			Host     string
			Services []struct{ Name string }
			Table    struct{ MaxFlows int64 }
			Pools    []struct {
				Name     string
				Backends []struct{ Host, State string }
			}
		}
		if err := json.Unmarshal([]byte(out), &st); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if st.Host != scenario.FrontHost || len(st.Services) != 4 || len(st.Pools) != 6 || st.Table.MaxFlows == 0 {
			t.Errorf("%s", out)
		}
		for _, p := range st.Pools {
			for _, b := range p.Backends {
				if b.State != "up" {
					t.Errorf("%s/%s is %s", p.Name, b.Host, b.State)
				}
			}
		}
	})
	t.Run("drain", func(t *testing.T) {
		o.order(t, 0, "drain", scenario.NginxHost)
		o.asks(t, scenario.Files, false)
		o.asks(t, scenario.Shop, false)
		o.asks(t, scenario.Linked, true)
		o.order(t, 0, "undrain", "files/"+scenario.NginxHost)
		o.asks(t, scenario.Files, true)
		o.asks(t, scenario.Shop, false)
		o.order(t, 0, "undrain", scenario.NginxHost)
		o.asks(t, scenario.Shop, true)
		o.order(t, 1, "drain", "nobody")
	})
	t.Run("weight survives a reload", func(t *testing.T) {
		o.order(t, 0, "weight", "files/"+scenario.NginxHost, "0")
		o.asks(t, scenario.Files, false)
		o.order(t, 0, "reload")
		o.asks(t, scenario.Files, false)
		o.order(t, 0, "weight", "files/"+scenario.NginxHost, "2")
		o.asks(t, scenario.Files, true)
	})
	t.Run("wrong file", func(t *testing.T) {
		good, err := os.ReadFile(o.file())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(o.file(), append([]byte("hots: front\n"), good...), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, errs := o.order(t, 2, "reload"); !strings.Contains(errs, "hots") {
			t.Errorf("said %s", errs)
		}
		o.asks(t, scenario.Files, true)
		if err := os.WriteFile(o.file(), good, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("check", func(t *testing.T) {
		if code, out, errs := o.run(t, "dispatcher", "check", "--config", o.file()); code != 0 || strings.Contains(out, "MISSING") {
			t.Errorf("exit code %d: %s%s", code, out, errs)
		}
	})
	t.Run("metrics", func(t *testing.T) {
		h, err := o.Lab.Host(scenario.FrontHost)
		if err != nil {
			t.Fatal(err)
		}
		client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, n, a string) (net.Conn, error) { return h.Dial(ctx, n, a) },
		}}
		resp, err := client.Get("http://127.0.0.1:9101/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		for _, want := range []string{
			`rehome_dispatcher_backend_up{backend="b2"} 1`, "rehome_dispatcher_flows_max 1.048576e+06", `rehome_dispatcher_backend_active{backend="b3"}`,
			"rehome_dispatcher_table_full_total 0", `rehome_dispatcher_backend_weight{backend="b2",pool="files"} 2`,
		} {
			if err != nil || !strings.Contains(string(text), want) {
				t.Errorf("no %s: %v", want, err)
			}
		}
	})
	t.Run("addresses", func(t *testing.T) {
		const port = 8081
		o.reload(t, func(c *dispatcher.Config) {
			c.Services = append(c.Services, dispatcher.ServiceConfig{
				Name: "more", Mode: dispatcher.ModeHTTP, Addresses: []netip.AddrPort{netip.AddrPortFrom(o.vip(), port)}, Default: "nowhere",
			})
			c.Pools = append(c.Pools, dispatcher.PoolConfig{
				Name: "nowhere", Delivery: dispatcher.DeliveryLinked, Backends: []dispatcher.BackendConfig{{Host: scenario.NginxHost}},
			})
		})
		// No application takes its connections: the client is told so.
		if answer, err := o.get(port); err != nil || !strings.Contains(answer, "503") {
			t.Errorf("the new address answers %q %v", answer, err)
		}
		o.reload(t, func(c *dispatcher.Config) {
			c.Services = c.Services[:len(c.Services)-1]
			c.Pools = c.Pools[:len(c.Pools)-1]
		})
		if c, err := o.dial(port); err == nil {
			_ = c.Close()
			t.Error("the address that is no more answers")
		}
		o.asks(t, scenario.Files, true)
	})
	t.Run("peers", func(t *testing.T) {
		kept := o.session(t)
		whole, err := os.ReadFile(o.file())
		if err != nil {
			t.Fatal(err)
		}
		o.reload(t, func(c *dispatcher.Config) {
			on := func(s scenario.Service) bool { return s.Host() == scenario.MixedHost }
			c.Peers = slices.DeleteFunc(c.Peers, func(p dispatcher.PeerConfig) bool { return p.Name == scenario.MixedHost })
			c.Pools = slices.DeleteFunc(c.Pools, func(p dispatcher.PoolConfig) bool { return on(scenario.Service(p.Name)) })
			for i := range c.Pools {
				c.Pools[i].Backends = slices.DeleteFunc(c.Pools[i].Backends, func(b dispatcher.BackendConfig) bool { return b.Host == scenario.MixedHost })
			}
			c.Services = slices.DeleteFunc(c.Services, func(s dispatcher.ServiceConfig) bool { return on(scenario.Service(s.Default)) })
			for i := range c.Services {
				c.Services[i].Routes = slices.DeleteFunc(c.Services[i].Routes, func(r dispatcher.RouteConfig) bool { return on(scenario.Service(r.Pool)) })
			}
		})
		kept.lives(t, "with its backend gone from the configuration")
		o.asks(t, scenario.Store, false)
		o.asks(t, scenario.Shop, true)
		if err := os.WriteFile(o.file(), whole, 0o600); err != nil {
			t.Fatal(err)
		}
		o.order(t, 0, "reload")
		o.asks(t, scenario.Store, true) // at once: a reload waits for new backends
		o.asks(t, scenario.Vault, true)
		kept.lives(t, "with its backend back")
	})
}

// get sends a request, and returns the beginning of the answer.
func (o *operated) get(port uint16) (string, error) {
	c, err := o.dial(port)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // read in whole
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, "GET /who HTTP/1.1\r\nHost: shop.example\r\n\r\n"); err != nil {
		return "", err
	}
	return bufio.NewReader(c).ReadString('\n')
}

// TestDispatcherReload loads 10,000 routes while wrk opens a connection for every request, by SIGHUP and by command.
func TestDispatcherReload(t *testing.T) {
	needPrograms(t, "wrk")
	o := operate(t, "reload")
	kept := o.session(t)
	ctx := testContext(t, time.Minute)
	r, err := scenario.MeasureReload(ctx, o.Farm, o.front, 10_000, 4*time.Second)
	if err != nil {
		t.Fatalf("%v\n%s", err, o.Logs(scenario.FrontHost))
	}
	t.Logf("by SIGHUP, from writing the file to the first answer: %+v", r)
	if r.Load.Failed() > 0 || r.Load.Requests < 1000 {
		t.Errorf("%d of %d requests failed", r.Load.Failed(), r.Load.Requests)
	}
	type report struct {
		scenario.Load
		err error
	}
	done := make(chan report, 1)
	go func() {
		l, err := scenario.MeasureLoad(ctx, o.Farm, o.front, scenario.LoadConfig{NewConnections: true, Time: 4 * time.Second})
		done <- report{l, err}
	}()
	for range 5 {
		out, _ := o.order(t, 0, "reload", "--output", "json")
		var result struct{ Routes, Micros int }
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		t.Logf("by command: %+v", result)
		if result.Routes < 10_000 || result.Micros > 1_000_000 {
			t.Errorf("%d routes in %d us", result.Routes, result.Micros)
		}
	}
	l := <-done
	if l.err != nil || l.Failed() > 0 || l.Requests < 1000 {
		t.Errorf("%d of %d requests failed: %v", l.Failed(), l.Requests, l.err)
	}
	kept.lives(t, "after the reloads")
}

// TestDispatcherReplacesBackends reloads again and again, each time with other backends in the place of the old ones: their
// link-layer addresses are written in another way. Connections are handed off all the while.
func TestDispatcherReplacesBackends(t *testing.T) {
	needPrograms(t, "wrk")
	o := operate(t, "replace")
	kept := o.session(t)
	ctx := testContext(t, time.Minute)
	macs := map[string]string{}
	for _, host := range o.Servers() {
		h, err := o.Lab.Host(host)
		if err != nil {
			t.Fatal(err)
		}
		link, err := h.Link()
		if err != nil {
			t.Fatal(err)
		}
		macs[host] = link.MAC.String()
	}
	type report struct {
		scenario.Load
		err error
	}
	done := make(chan report, 1)
	go func() {
		l, err := scenario.MeasureLoad(ctx, o.Farm, o.front, scenario.LoadConfig{NewConnections: true, Time: 5 * time.Second})
		done <- report{l, err}
	}()
	var l report
	reloads := 0
	for running := true; running; {
		o.reload(t, func(c *dispatcher.Config) {
			for i := range c.Peers {
				c.Peers[i].MAC = strings.ReplaceAll(macs[c.Peers[i].Name], ":", []string{":", "-"}[reloads%2])
			}
		})
		reloads++
		select {
		case l = <-done:
			running = false
		case <-time.After(100 * time.Millisecond): // what a busy operator may do
		}
	}
	t.Logf("%d reloads, %+v", reloads, l.Load)
	if l.err != nil || l.Failed() > 0 || l.Requests < 1000 || reloads < 5 {
		t.Errorf("%d reloads, %d of %d requests failed: %v\n%s", reloads, l.Failed(), l.Requests, l.err, o.Logs(scenario.FrontHost))
	}
	kept.lives(t, "after the reloads")
	o.asks(t, scenario.Linked, true)
}

// TestDispatcherStops ends the dispatcher while requests are being sent, and starts the next one.
func TestDispatcherStops(t *testing.T) {
	t.Parallel()
	o := operate(t, "stop")
	kept := o.session(t)
	const half, rest = "GET /who HTTP/1.1\r\n", "Host: shop.example\r\nConnection: close\r\n\r\n"
	var waiting []net.Conn
	for range 50 {
		c, err := o.dial(scenario.Files.Port())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.WriteString(c, half); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	// All have been accepted: the dispatcher looks at them.
	for deadline := time.Now().Add(5 * time.Second); ; {
		if out, _ := o.order(t, 0, "status", "--output", "json"); strings.Contains(out, `"peeking": 50`) {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(out)
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- o.front.Stop() }()
	for deadline := time.Now().Add(5 * time.Second); ; {
		c, err := o.dial(scenario.Files.Port())
		if err != nil {
			break
		}
		_ = c.Close()
		if time.Now().After(deadline) {
			t.Fatal("it accepts for ever")
		}
	}
	for _, c := range waiting {
		if _, err := io.WriteString(c, rest); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range waiting {
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, "200 OK") {
			t.Fatalf("connection %d: %q %v\n%s", i, line, err, o.Logs(scenario.FrontHost))
		}
	}
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	kept.lives(t, "without a dispatcher")
	o.order(t, 3, "status")
	startFront(t, o.Farm, o.front)
	kept.lives(t, "with the next dispatcher")
	if text := o.Logs(scenario.FrontHost); strings.Contains(text, "no backend takes a connection") {
		t.Errorf("a dispatcher accepted before it knew a backend:\n%s", text)
	}
	o.asks(t, scenario.Files, true)
}
