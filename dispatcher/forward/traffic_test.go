// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// cluster is a client, an entry that has the service's addresses, and servers behind it. Each answers what it is sent
// with its number in front; 0 is the entry itself.
type cluster struct {
	client, entry *host
	servers       []*host
}

const (
	vip4 = "10.66.0.100:80"
	vip6 = "[fd66::100]:80"
)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	hosts := network(t, 4)
	c := &cluster{client: hosts[0], entry: hosts[1], servers: hosts[2:]}
	c.entry.address(t, "eth0", "10.66.0.100/24")
	c.entry.address(t, "eth0", "fd66::100/64")
	for _, s := range c.servers {
		// Has the address without answering ARP or ND for it.
		s.sysctl(t, "net/ipv4/conf/all/arp_ignore", "1")
		s.sysctl(t, "net/ipv4/conf/all/arp_announce", "2")
		s.address(t, "lo", "10.66.0.100/32")
		s.address(t, "lo", "fd66::100/128")
	}
	for i, s := range append([]*host{c.entry}, c.servers...) {
		for _, at := range []string{vip4, vip6} {
			serve(t, s, i, at)
		}
	}
	return c
}

func serve(t *testing.T, h *host, number int, at string) {
	t.Helper()
	l := h.listen(t, at)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// A connection that left for elsewhere is never ended by its client.
			stop := context.AfterFunc(t.Context(), func() { conn.Close() })
			go func() {
				defer stop()
				defer conn.Close()
				b := make([]byte, 64<<10)
				for {
					n, err := conn.Read(b)
					if err != nil {
						return
					}
					if _, err := conn.Write(append([]byte{'0' + byte(number)}, b[:n]...)); err != nil {
						return
					}
				}
			}()
		}
	}()
	var p net.PacketConn
	h.do(t, func() (err error) {
		p, err = net.ListenPacket("udp", at)
		return err
	})
	t.Cleanup(func() { p.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			if _, err := p.WriteTo(append([]byte{'0' + byte(number)}, b[:n]...), from); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		}
	}()
}

func (c *cluster) configure(t testing.TB, f *Forwarder) {
	t.Helper()
	for i, s := range c.servers {
		if err := f.SetNode(gate.Node(i+1), c.entry.index(t), s.mac(t), c.entry.mac(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, of := range []*Flows{f.Flows, f.UDP()} {
		for _, vip := range []string{vip4, vip6} {
			if err := of.SetService(netip.MustParseAddrPort(vip), []gate.Node{1, 2}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (c *cluster) dial(t testing.TB, network, to string) net.Conn {
	t.Helper()
	var conn net.Conn
	c.client.do(t, func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(t.Context(), network, to)
		return err
	})
	t.Cleanup(func() { conn.Close() })
	return conn
}

// flowOf is the flow of a client's connection.
func flowOf(c net.Conn) tcprepair.Flow {
	at := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
	return tcprepair.NewFlow(at(c.RemoteAddr()), at(c.LocalAddr()))
}

// ask sends bytes and returns the number of the server that sent them back.
func ask(c net.Conn, sent []byte) (string, error) {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := c.Write(sent); err != nil {
		return "", err
	}
	b := make([]byte, len(sent)+1)
	var err error
	if _, ok := c.(*net.UDPConn); ok {
		_, err = c.Read(b)
	} else {
		_, err = io.ReadFull(c, b)
	}
	if err != nil {
		return "", err
	}
	if !bytes.Equal(b[1:], sent) {
		return "", fmt.Errorf("sent %x, received %x", sent, b[1:])
	}
	return string(b[:1]), nil
}

func who(t testing.TB, c net.Conn) string {
	t.Helper()
	s, err := ask(c, []byte("who"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pingPong has every datagram answered before the next.
func pingPong(c net.Conn, n int, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range n {
		if _, err := ask(c, fmt.Appendf(nil, "%d", i)); err != nil {
			return fmt.Errorf("datagram %d: %w", i, err)
		}
		<-tick.C
	}
	return nil
}

// exercise sends real traffic through a configured forwarder.
func (c *cluster) exercise(t *testing.T, f *Forwarder) {
	t.Helper()
	for _, vip := range []string{vip4, vip6} {
		for _, network := range []string{"tcp", "udp"} {
			of := f.Flows
			if network == "udp" {
				of = f.UDP()
			}
			served := map[string]int{}
			for range 6 {
				conn := c.dial(t, network, vip)
				first := who(t, conn)
				served[first]++
				for range 20 {
					if s := who(t, conn); s != first {
						t.Fatalf("%s to %s: served by %s, then by %s", network, vip, first, s)
					}
				}
				r, err := of.Route(flowOf(conn))
				if err != nil || fmt.Sprint(r.Node) != first || r.Forwarded < 20 {
					t.Errorf("%s to %s: route %+v, %v, server %s", network, vip, r, err, first)
				}
			}
			if d := cmp.Diff(map[string]int{"1": 3, "2": 3}, served); d != "" {
				t.Errorf("%s to %s, connections by server: %s", network, vip, d)
			}
		}
		// Connections of another port are the entry's own, and so are those of a service that has no node left.
		conn := c.dial(t, "udp", vip)
		big := bytes.Repeat([]byte("0123456789abcdef"), 512) // six fragments, or seven
		if _, err := ask(conn, big[:8000]); err != nil {
			t.Errorf("fragmented datagram to %s: %v", vip, err)
		}
		upload := c.dial(t, "tcp", vip)
		for range 50 {
			if _, err := upload.Write(big); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := f.Stats(); s.Fragments < 10 || s.NoNode+s.Loop+s.Full > 0 {
		t.Errorf("%+v", s)
	}
}

func TestTraffic(t *testing.T) {
	c := newCluster(t)
	f := c.entry.forwarder(t, Config{})
	conn := c.dial(t, "tcp", vip4)
	if s := who(t, conn); s != "0" {
		t.Errorf("without a service: served by %s", s)
	}
	c.configure(t, f)
	if s := who(t, conn); s != "0" {
		t.Errorf("an older connection: served by %s", s)
	}
	c.exercise(t, f)
	// The dispatcher's own: recorded, and at the host's stack.
	if err := f.SetService(netip.MustParseAddrPort(vip6), []gate.Node{0}); err != nil {
		t.Fatal(err)
	}
	conn = c.dial(t, "tcp", vip6)
	if s := who(t, conn); s != "0" {
		t.Errorf("served by %s", s)
	}
	if r, err := f.Route(flowOf(conn)); err != nil || r.Node != 0 || r.Epoch != 1 {
		t.Errorf("Route = %+v, %v", r, err)
	}
	// Handed to a server that knows nothing of it, its packets get there, whose stack says so.
	if _, err := f.Commit(flowOf(conn), 1, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(conn, []byte("lost")); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after Commit to a stranger: %v, want a reset", err)
	}
}

// XDP with a neighbour that receives what is redirected: the probe passes, and so does the traffic.
func TestTrafficXDP(t *testing.T) {
	c := newCluster(t)
	c.entry.hub.offload(t, c.entry.port, ethtoolGRO, 1)
	// XDP takes frames as they are: what a sender leaves to the device is never done.
	for _, h := range append(c.servers, c.client, c.entry) {
		h.offload(t, "eth0", ethtoolChecksum, 0)
	}
	path := bpffs(t)
	var log bytes.Buffer
	config := Config{
		Interfaces: []string{"eth0"}, Mode: XDP, MaxFlows: 1000, PinPath: path,
		Peers: []netip.Addr{netip.MustParseAddr("10.66.0.1")}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if f.Mode() != XDP {
		t.Fatalf("mode %v: %s", f.Mode(), &log)
	}
	c.entry.expect(t, "open", "rehome_xdp")
	if err := f.SetNode(3, 1, c.client.mac(t), c.client.mac(t)); err == nil {
		t.Error("a node behind an interface that was not probed")
	}
	c.configure(t, f)
	c.exercise(t, f)
	conn := c.dial(t, "tcp", vip4)
	first := who(t, conn)
	// The neighbour falls silent: what is pinned gives way to tcx, and the connection goes on.
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	config.Peers = []netip.Addr{netip.MustParseAddr("10.66.0.77")}
	if f, err = c.entry.open(t, config); err != nil {
		t.Fatal(err)
	}
	c.entry.expect(t, "fallen back", "rehome_forward")
	if s := who(t, conn); s != first {
		t.Errorf("served by %s, then by %s", first, s)
	}
	config.Peers = nil // the kernel knows its neighbours by now
	// From one mode to the other and back, under a connection.
	for _, mode := range []Mode{TCX, XDP, XDP, TCX} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		config.Mode = mode
		if f, err = c.entry.open(t, config); err != nil {
			t.Fatal(err)
		}
		if f.Mode() != mode {
			t.Fatalf("mode %v: %s", f.Mode(), &log)
		}
		c.entry.expect(t, mode.String(), map[Mode]string{TCX: "rehome_forward", XDP: "rehome_xdp"}[mode])
		if s := who(t, conn); s != first {
			t.Errorf("%v: served by %s, then by %s", mode, first, s)
		}
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	c.entry.expect(t, "removed")
}

// Where what XDP redirects is lost, or nobody can tell, it is not used.
func TestProbeFallsBack(t *testing.T) {
	for _, c := range []struct {
		name, warning string
		peers         []netip.Addr
	}{
		{"veth without GRO", "frames get lost", []netip.Addr{netip.MustParseAddr("10.66.0.1")}},
		{"nobody to ask", "Config.Peers", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := newCluster(t)
			var log bytes.Buffer
			f := cluster.entry.forwarder(t, Config{
				Mode: XDP, Peers: c.peers, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			if f.Mode() != TCX || !strings.Contains(log.String(), c.warning) {
				t.Errorf("mode %v, log %q", f.Mode(), &log)
			}
			cluster.entry.expect(t, "fallen back", "rehome_forward")
			cluster.configure(t, f)
			if s := who(t, cluster.dial(t, "tcp", vip4)); s != "1" {
				t.Errorf("served by %s", s)
			}
		})
	}
}
