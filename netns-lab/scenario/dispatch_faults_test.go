// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/rehome-net/rehome/dispatcher"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/demo"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// faultHosts are the two backends of each pool.
func faultHosts() []string { return []string{scenario.LinkedHost, scenario.MixedHost} }

// faultPorts are those of the services: of the demo server, and of nginx.
func faultPorts() map[dispatcher.Delivery]uint16 {
	return map[dispatcher.Delivery]uint16{dispatcher.DeliveryLinked: 80, dispatcher.DeliveryUnmodified: 8001}
}

// faultNginx is a server without any knowledge of the dispatcher.
const faultNginx = `daemon off;
user root root;
worker_processes 1;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx-error.log;
events { worker_connections 8192; }
http {
	access_log off;
	root %[1]s/www;
	keepalive_requests 100000000;
	client_body_temp_path %[1]s/tmp;
	proxy_temp_path %[1]s/tmp;
	fastcgi_temp_path %[1]s/tmp;
	uwsgi_temp_path %[1]s/tmp;
	scgi_temp_path %[1]s/tmp;
	server {
		listen %[2]d backlog=4096;
		listen [::]:%[2]d backlog=4096;
	}
}
`

// farmOfTwo has two backends for each of two pools, the demo server and nginx.
type farmOfTwo struct {
	*scenario.Bench
	t       *testing.T
	command []string
	mu      sync.Mutex
	kill    map[dispatcher.Delivery]map[string]func() error
}

func startFarmOfTwo(t *testing.T, kind string) *farmOfTwo {
	t.Helper()
	needPrograms(t, "nginx")
	cfg := scenario.BenchConfig{Command: binary(t), Lab: labName(kind)}
	for d, port := range faultPorts() {
		pool := dispatcher.PoolConfig{Name: string(d), Delivery: d}
		if d == dispatcher.DeliveryLinked {
			pool.Service = demo.FilesService
		}
		for _, h := range faultHosts() {
			pool.Backends = append(pool.Backends, dispatcher.BackendConfig{Host: h})
		}
		cfg.Pools = append(cfg.Pools, pool)
		cfg.Services = append(cfg.Services, scenario.BenchService{
			Port: port, ServiceConfig: dispatcher.ServiceConfig{Name: string(d), Mode: dispatcher.ModeHTTP, Default: string(d)},
		})
	}
	f := &farmOfTwo{Bench: bench(t, cfg), t: t, command: cfg.Command, kill: make(map[dispatcher.Delivery]map[string]func() error)}
	for _, host := range faultHosts() {
		dir := f.Path(host, "www")
		if err := errors.Join(
			os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "who"), []byte(host+"\n"), 0o644),
			os.WriteFile(f.Path(host, "nginx.conf"), fmt.Appendf(nil, faultNginx, f.Path(host, "."), faultPorts()[dispatcher.DeliveryUnmodified]), 0o644),
		); err != nil {
			t.Fatal(err)
		}
		for d := range faultPorts() {
			f.start(d, host)
		}
	}
	for d := range faultPorts() {
		f.awaitService(d, time.Now())
	}
	return f
}

// start starts a server.
func (f *farmOfTwo) start(d dispatcher.Delivery, host string) {
	f.t.Helper()
	command := []string{"nginx", "-c", f.Path(host, "nginx.conf")}
	if d == dispatcher.DeliveryLinked {
		command = append(slices.Clone(f.command), "lab", "serve", "--root", f.Path(host, "www"),
			"--agent-socket", scenario.AgentSocket(f.Lab.Topology().Name, host), "--files", fmt.Sprintf(":%d", faultPorts()[d]))
	}
	kill, err := f.Launch(testContext(f.t, time.Minute), host, "server-"+string(d), command...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kill[d] == nil {
		f.kill[d] = make(map[string]func() error)
	}
	f.kill[d][host] = kill
}

// awaitService waits until both backends answer requests begun after a moment, and nothing else happens to ten of them in a row.
func (f *farmOfTwo) awaitService(d dispatcher.Delivery, begin time.Time) {
	f.t.Helper()
	client, to := newCaller(f.Host(scenario.ClientHost), 5000, 1000), f.Target(faultPorts()[d], false)
	awaitTrue(f.t, 15*time.Second, func() error {
		var list []outcome
		for range 10 {
			list = append(list, request(client, to))
		}
		if t := count(list); t.kinds[answered] != len(list) || len(t.hosts) != len(faultHosts()) {
			return fmt.Errorf("%s, %v after the start: %v", d, time.Since(begin), t)
		}
		return nil
	})
}

// fault is something that happens to a backend.
type fault struct {
	name   string
	trials int
	// down is how long it lasts.
	down  time.Duration
	begin func(f *farmOfTwo, d dispatcher.Delivery, host string) error
	end   func(f *farmOfTwo, d dispatcher.Delivery, host string) error
}

func allFaults() []fault {
	return []fault{
		{
			name: "agent killed", trials: 4, down: 200 * time.Millisecond,
			begin: func(f *farmOfTwo, _ dispatcher.Delivery, host string) error { return f.KillAgent(host) },
			end: func(f *farmOfTwo, _ dispatcher.Delivery, host string) error {
				return f.StartAgent(testContext(f.t, time.Minute), host)
			},
		},
		{
			name: "application killed", trials: 4, down: 200 * time.Millisecond,
			begin: func(f *farmOfTwo, d dispatcher.Delivery, host string) error {
				f.mu.Lock()
				defer f.mu.Unlock()
				return f.kill[d][host]()
			},
			end: func(f *farmOfTwo, d dispatcher.Delivery, host string) error {
				f.start(d, host)
				return nil
			},
		},
		{
			name: "cable out", trials: 1, down: 2500 * time.Millisecond,
			begin: func(f *farmOfTwo, _ dispatcher.Delivery, host string) error { return setCable(f.Host(host), false) },
			end:   func(f *farmOfTwo, _ dispatcher.Delivery, host string) error { return setCable(f.Host(host), true) },
		},
		{
			name: "agent unreachable", trials: 1, down: 2500 * time.Millisecond,
			begin: func(f *farmOfTwo, _ dispatcher.Delivery, host string) error { return f.blackhole(host, true) },
			end:   func(f *farmOfTwo, _ dispatcher.Delivery, host string) error { return f.blackhole(host, false) },
		},
	}
}

// setCable takes a host's cable out, or puts it back.
func setCable(h *netnslab.Host, in bool) error {
	// Linux forgets IPv6 addresses of an interface that is switched off, as which a cable is played.
	if err := h.SetSysctl("net.ipv6.conf."+netnslab.Interface+".keep_addr_on_down", "1"); err != nil {
		return err
	}
	return h.Do(func() error {
		link, err := netlink.LinkByName(netnslab.Interface)
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	})
}

// blackhole loses what the dispatcher's host itself sends to a host, and so the link to its agent, but nothing that it sends on at layer 2.
func (f *farmOfTwo) blackhole(host string, on bool) error {
	addr := f.Host(host).Addr4()
	return f.Host(scenario.FrontHost).Do(func() error {
		r := &netlink.Route{Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Type: 6} // RTN_BLACKHOLE
		if on {
			return netlink.RouteAdd(r)
		}
		return netlink.RouteDel(r)
	})
}

// TestDispatchFaults lets things happen to one of two backends while requests come. Clients use their ports again while servers still
// remember the last connection from there.
func TestDispatchFaults(t *testing.T) {
	const clients, seed, ports = 8, 3, 1000
	f := startFarmOfTwo(t, "dfaults")
	random := rand.New(rand.NewPCG(seed, 0))
	first := uint32(10000)
	for _, v := range allFaults() {
		for _, d := range []dispatcher.Delivery{dispatcher.DeliveryLinked, dispatcher.DeliveryUnmodified} {
			t.Run(v.name+"/"+string(d), func(t *testing.T) {
				f.t = t
				v6 := random.IntN(2) == 0
				s := startStream(newCaller(f.Host(scenario.ClientHost), first, ports), f.Target(faultPorts()[d], v6), clients)
				first += ports
				for trial := range v.trials {
					host := faultHosts()[random.IntN(2)]
					time.Sleep(time.Duration(random.IntN(int(20 * time.Millisecond)))) // the fault's moment
					if err := v.begin(f, d, host); err != nil {
						t.Fatal(err)
					}
					time.Sleep(v.down) // what lasts
					if err := v.end(f, d, host); err != nil {
						t.Fatal(err)
					}
					healed := time.Now()
					awaitTrue(t, 10*time.Second, func() error {
						if got := count(s.since(healed)); len(got.hosts) != len(faultHosts()) {
							return fmt.Errorf("since the end of the fault: %v", got)
						}
						return nil
					})
					t.Logf("trial %d: %s is back after %v", trial, host, time.Since(healed))
				}
				got := count(s.end())
				v.check(t, got, clients*v.trials)
				f.explain(got)
			})
		}
	}
}

// check compares with what a fault may do: end what was at the victim, one request of each client at most.
func (v fault) check(t *testing.T, got tally, most int) {
	t.Helper()
	t.Log(got)
	if got.kinds[answered] < 10*most {
		t.Errorf("only %d requests were answered", got.kinds[answered])
	}
	for _, k := range []string{unavailable, refused, hung, wrong} {
		if got.kinds[k] != 0 {
			t.Errorf("%d requests %s", got.kinds[k], k)
		}
	}
	if got.kinds[ended] > most {
		t.Errorf("%d connections ended, %d at most were at a victim", got.kinds[ended], most)
	}
	for _, host := range faultHosts() {
		if got.hosts[host] == 0 {
			t.Errorf("%s has answered nothing", host)
		}
	}
}

// explain logs what daemons have said about requests to which happened what should not.
func (f *farmOfTwo) explain(got tally) {
	f.t.Helper()
	for _, o := range got.bad[:min(len(got.bad), 5)] {
		f.t.Logf("%s from %s, begun %s: %v", o.kind(), o.from, o.begun.UTC().Format("15:04:05.000"), o.err)
		for _, log := range []string{f.Path(scenario.FrontHost, "dispatcher.log"), f.Path(faultHosts()[0], "agent.log"), f.Path(faultHosts()[1], "agent.log")} {
			f.t.Log(mentions(log, o.from))
		}
	}
}

// TestDispatchKilled kills the dispatcher in the middle of its work, again and again. Connections that it has handed off
// notice nothing; those that it still has may end.
func TestDispatchKilled(t *testing.T) {
	const kills, clients, kept, seed = 6, 4, 20, 4
	f := startFarmOfTwo(t, "dkilled")
	random := rand.New(rand.NewPCG(seed, 0))
	client := f.Host(scenario.ClientHost)
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	var questions atomic.Int64
	var streams []*stream
	first := uint32(10000)
	for d, port := range faultPorts() {
		for i := range kept {
			conn, err := client.Dial(testContext(t, 10*time.Second), "tcp", f.Target(port, i%2 == 0).String())
			if err != nil {
				t.Fatal(err)
			}
			k := &keptConn{conn: conn, answers: bufio.NewReader(conn)}
			if err := k.ask(); err != nil { // from here on it is handed off
				t.Fatal(err)
			}
			group.Go(func() {
				defer conn.Close()
				for ctx.Err() == nil {
					if err := k.ask(); err != nil {
						t.Errorf("%s: a connection that was handed off: %v", d, err)
						return
					}
					questions.Add(1)
					time.Sleep(10 * time.Millisecond) // the machine is small
				}
			})
		}
		for _, v6 := range []bool{false, true} {
			streams = append(streams, startStream(newCaller(client, first, 5000), f.Target(port, v6), clients))
			first += 5000
		}
	}
	var windows [][2]time.Time
	for range kills {
		time.Sleep(100*time.Millisecond + time.Duration(random.IntN(int(100*time.Millisecond)))) // the moment
		begin := time.Now()
		if err := f.KillDispatcher(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(random.IntN(int(100 * time.Millisecond))))
		if err := f.StartDispatcher(testContext(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		windows = append(windows, [2]time.Time{begin, time.Now()})
	}
	back := time.Now()
	awaitTrue(t, 10*time.Second, func() error {
		for _, s := range streams {
			if n := len(s.since(back)); n < 50 {
				return fmt.Errorf("%d requests since the last start", n)
			}
		}
		return nil
	})
	for _, s := range streams {
		all := s.end()
		got := count(all)
		t.Log(got)
		// What waited in the kernel's queue ends with what the process had, and a client has a second try before the last listener is closed.
		if lost, most := got.kinds[ended]+got.kinds[hung], 2*kills*clients; lost > most {
			t.Errorf("%d requests were lost, %d at most were at the dispatcher when it was killed", lost, most)
		}
		outside := slices.DeleteFunc(all, func(o outcome) bool {
			return slices.ContainsFunc(windows, func(w [2]time.Time) bool { return o.begun.Before(w[1]) && o.begun.Add(o.took).After(w[0]) })
		})
		if n := count(outside); n.kinds[answered] != len(outside) || len(outside) < 50 {
			t.Errorf("while the dispatcher was there: %v", n)
			f.explain(n)
		}
	}
	cancel()
	group.Wait()
	if n := questions.Load(); n < 100*kills {
		t.Errorf("only %d questions on connections that were handed off", n)
	}
	t.Logf("%d questions on %d connections that were handed off", questions.Load(), kept*len(faultPorts()))
}

// keptConn is a connection that is used again and again.
type keptConn struct {
	conn    net.Conn
	answers *bufio.Reader
	host    string
}

// ask asks who serves: always the same.
func (k *keptConn) ask() error {
	_ = k.conn.SetDeadline(time.Now().Add(requestLimit))
	if _, err := io.WriteString(k.conn, "GET /who HTTP/1.1\r\nHost: shop.example\r\n\r\n"); err != nil {
		return err
	}
	who, err := readWho(k.answers)
	switch {
	case err != nil:
		return err
	case k.host != "" && who != k.host:
		return fmt.Errorf("%s answers, and %s did before", who, k.host)
	}
	k.host = who
	return nil
}
