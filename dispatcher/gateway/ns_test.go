// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"

	"github.com/rehome-net/rehome/handoff/wire"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// patience bounds every wait of the tests.
const patience = 10 * time.Second

// rig is a client in one network, servers and their router in another, all on one switch. The client's packets to the virtual
// address go straight to server b1; replies go through the router, where the gateway runs.
type rig struct {
	lab                    *netnslab.Lab
	client, router, b1, b2 *netnslab.Host
	vip4, vip6             netip.Addr
}

func newRig(t testing.TB) *rig {
	t.Helper()
	prefix := func(four, six string) []netip.Prefix {
		return []netip.Prefix{netip.MustParsePrefix(four), netip.MustParsePrefix(six)}
	}
	topo := netnslab.Topology{
		Hosts: []netnslab.HostSpec{
			{Name: "client", Role: netnslab.RoleClient, Addrs: prefix("10.78.0.1/24", "fd78::1/64")},
			{Name: "router", Role: netnslab.RoleClient, Addrs: append(prefix("10.77.0.254/24", "fd77::fe/64"), prefix("10.78.0.254/24", "fd78::fe/64")...), Sysctls: map[string]string{
				"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1", "net.ipv4.conf.eth0.send_redirects": "0",
			}},
			{Name: "b1", Role: netnslab.RoleServer, Addrs: prefix("10.77.0.11/24", "fd77::11/64")},
			{Name: "b2", Role: netnslab.RoleServer, Addrs: prefix("10.77.0.12/24", "fd77::12/64")},
		},
		VIPs: []netip.Addr{netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("fd77::100")},
	}
	r := &rig{lab: labtest.New(t, topo), vip4: topo.VIP4(), vip6: topo.VIP6()}
	r.client, r.router = labtest.Host(t, r.lab, "client"), labtest.Host(t, r.lab, "router")
	r.b1, r.b2 = labtest.Host(t, r.lab, "b1"), labtest.Host(t, r.lab, "b2")
	for _, h := range []*netnslab.Host{r.b1, r.b2} {
		route(t, h, "0.0.0.0/0", "10.77.0.254")
		route(t, h, "::/0", "fd77::fe")
	}
	route(t, r.client, "10.77.0.100/32", "")
	route(t, r.client, "fd77::100/128", "")
	mac := macOf(t, r.b1)
	for _, vip := range topo.VIPs {
		if err := r.client.SetNeighbor(vip, mac); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// route adds a route of a host, to its own link when via is empty.
func route(t testing.TB, h *netnslab.Host, to, via string) {
	t.Helper()
	_, network, err := net.ParseCIDR(to)
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		l, err := netlink.LinkByName(netnslab.Interface)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: network, Gw: net.ParseIP(via)}
		if via == "" {
			r.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteAdd(r)
	})
	if err != nil {
		t.Fatalf("%s: route to %s: %v", h.Name(), to, err)
	}
}

func macOf(t testing.TB, h *netnslab.Host) net.HardwareAddr {
	t.Helper()
	l, err := h.Link()
	if err != nil {
		t.Fatal(err)
	}
	return l.MAC
}

// config is that of a gateway on the router, for b1 alone.
func (r *rig) config(t testing.TB) Config {
	return Config{
		Host: "gw", Interfaces: []string{netnslab.Interface}, Plaintext: true,
		Dispatcher: HostConfig{Name: "front", Address: "10.77.0.2:7070", MAC: "02:00:00:00:00:99"},
		Servers:    []HostConfig{{Name: "b1", Address: "10.77.0.11", MAC: macOf(t, r.b1).String()}},
		Services: []ServiceConfig{
			{Name: "video", Mode: ModeRTSP, Addresses: []netip.AddrPort{netip.AddrPortFrom(r.vip4, signalPort), netip.AddrPortFrom(r.vip6, signalPort)}},
			{Name: "voice", Mode: ModeSIP, Addresses: []netip.AddrPort{netip.AddrPortFrom(r.vip4, datagrams), netip.AddrPortFrom(r.vip6, datagrams)}},
		},
	}
}

// open opens a gateway on the router, which ends with the test.
func (r *rig) open(t testing.TB, c Config) *Gateway {
	t.Helper()
	var g *Gateway
	err := r.router.Do(func() (err error) {
		g, err = Open(c, newLineParser, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// run runs a gateway until the function that it returns is called, or the test ends.
func run(t testing.TB, g *Gateway) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	eventually(t, "it reads", func() bool {
		var b gatewayBeat
		return g.divert.objects.Heartbeat.Lookup(uint32(0), &b) == nil && b.Until > 0
	})
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the gateway does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// dispatcherFor connects a gateway to a server in this process, which says with install what becomes of reports.
func dispatcherFor(t testing.TB, g *Gateway, install func(context.Context, Said) error) *Server {
	t.Helper()
	s, err := NewServer(ServerConfig{Gateways: []string{"gw"}, Install: install})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	g.dial = func(context.Context) (*wire.Link, error) {
		near, far := net.Pipe()
		serving.Go(func() { _ = s.Serve(ctx, "gw", wire.NewLink(far)) })
		return wire.NewLink(near), nil
	}
	return s
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
