// SPDX-License-Identifier: Apache-2.0

package scenario_test

import (
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rehome-net/rehome/agent"
	"github.com/rehome-net/rehome/dispatcher"
	"github.com/rehome-net/rehome/dispatcher/health"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// checkPort is the port of the first service that is only checked; the others follow it.
const checkPort = 8101

// checkPage is what a server that is asked by a kind of check says; it listens at the virtual address alone, so that only a probe by the clients' way
// reaches it.
func checkPage(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "I am well") }

// checkKind is one kind of check, and a server for it.
type checkKind struct {
	health dispatcher.HealthConfig
	// serve lets a server be well on a host, until end is called.
	serve func(t *testing.T, h *netnslab.Host, at netip.AddrPort) (end func())
}

// overHTTP is for the two kinds that a web server answers.
func overHTTP(start func(*httptest.Server)) func(*testing.T, *netnslab.Host, netip.AddrPort) func() {
	return func(t *testing.T, h *netnslab.Host, at netip.AddrPort) func() {
		t.Helper()
		s := httptest.NewUnstartedServer(http.HandlerFunc(checkPage))
		_ = s.Listener.Close() // in the test's own namespace
		s.Listener = listen(t, h, at)
		s.Config.ErrorLog = stdlog.New(io.Discard, "", 0) // a probe may be under way when the server ends
		start(s)
		return s.Close
	}
}

func listen(t *testing.T, h *netnslab.Host, at netip.AddrPort) net.Listener {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func overTCP(t *testing.T, h *netnslab.Host, at netip.AddrPort) func() {
	t.Helper()
	l := listen(t, h, at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			question := make([]byte, len("ping"))
			if _, err := io.ReadFull(c, question); err == nil && string(question) == "ping" {
				_, _ = io.WriteString(c, "pong") // who does not wait for it has not asked
			}
			_ = c.Close()
		}
	}()
	return func() { _ = l.Close() }
}

func overUDP(t *testing.T, h *netnslab.Host, at netip.AddrPort) func() {
	t.Helper()
	c, err := h.ListenPacket(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		question := make([]byte, 64)
		for {
			n, from, err := c.ReadFrom(question)
			if err != nil {
				return
			}
			if string(question[:n]) == "ping" {
				_, _ = c.WriteTo([]byte("pong"), from) // who does not wait for it has not asked
			}
		}
	}()
	return func() { _ = c.Close() }
}

// checkKinds are all of them. The script is well as long as there is a file of the address that it is told.
func checkKinds(t *testing.T) map[health.Kind]checkKind {
	dir := t.TempDir()
	script := filepath.Join(dir, "check")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec test -e "+dir+"/$REHOME_CHECK_ADDRESS\n"), 0o700); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	return map[health.Kind]checkKind{
		health.TCP:  {dispatcher.HealthConfig{Payload: "ping", Expect: "pong"}, overTCP},
		health.HTTP: {dispatcher.HealthConfig{Path: "/well", Expect: "I am well"}, overHTTP((*httptest.Server).Start)},
		health.TLS:  {dispatcher.HealthConfig{SNI: "files.example"}, overHTTP((*httptest.Server).StartTLS)},
		health.UDP:  {dispatcher.HealthConfig{Payload: "ping", Expect: "pong"}, overUDP},
		health.Script: {dispatcher.HealthConfig{Command: []string{script}}, func(t *testing.T, h *netnslab.Host, _ netip.AddrPort) func() {
			t.Helper()
			file := filepath.Join(dir, h.Addr4().String())
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(file) }
		}},
	}
}

// TestDispatcherCheckKinds lets one of two servers be ill, and well again, for every kind of check.
func TestDispatcherCheckKinds(t *testing.T) {
	t.Parallel()
	lab := labName("kinds")
	topo := scenario.DispatchTopology(lab)
	hosts := []string{scenario.NginxHost, scenario.MixedHost}
	kinds := checkKinds(t)
	at := make(map[health.Kind]netip.AddrPort)
	for kind := range kinds {
		at[kind] = netip.AddrPortFrom(topo.VIP4(), uint16(checkPort+len(at)))
	}
	o := &operated{lab: lab, cmd: binary(t)}
	o.Farm = farm(t, scenario.FarmConfig{Lab: lab, Agents: true, Adjust: func(c *agent.Config) {
		scenario.DispatchedAgents(topo.VIPs)(c)
		for kind, a := range at {
			c.Services = append(c.Services, agent.ServiceConfig{Name: string(kind), Addresses: []netip.AddrPort{a}, Entry: scenario.FrontHost, Servers: hosts})
		}
	}})
	startFront(t, o.Farm, scenario.RehomeAdjusted(func(c *dispatcher.Config) {
		c.Checks.Addresses = []netip.Prefix{netip.MustParsePrefix("10.77.0.250/24")}
		for kind, k := range kinds {
			k.health.Type, k.health.Interval, k.health.Timeout, k.health.Rise, k.health.Fall = kind, 50*time.Millisecond, 300*time.Millisecond, 2, 2
			c.Services = append(c.Services, dispatcher.ServiceConfig{
				Name: string(kind), Mode: dispatcher.ModeTCP, Addresses: []netip.AddrPort{at[kind]}, Default: string(kind),
			})
			c.Pools = append(c.Pools, dispatcher.PoolConfig{
				Name: string(kind), Delivery: dispatcher.DeliveryUnmodified, Health: &k.health,
				Backends: []dispatcher.BackendConfig{{Host: hosts[0]}, {Host: hosts[1]}},
			})
		}
	}))
	for kind, k := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			serve := func(name string) func() {
				t.Helper()
				h, err := o.Lab.Host(name)
				if err != nil {
					t.Fatal(err)
				}
				return k.serve(t, h, at[kind])
			}
			o.becomes(t, string(kind), hosts[0], "unhealthy", "down") // nobody has served
			endFirst := serve(hosts[0])
			defer endFirst()
			o.becomes(t, string(kind), hosts[0], "up", "up")
			o.becomes(t, string(kind), hosts[1], "unhealthy", "down")
			endSecond := serve(hosts[1])
			o.becomes(t, string(kind), hosts[1], "up", "up")
			endSecond()
			o.becomes(t, string(kind), hosts[1], "unhealthy", "down")
			o.becomes(t, string(kind), hosts[0], "up", "up")
		})
	}
}
