// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/tcprepair"
)

// host is a namespace of a test that can have a gate.
type host struct {
	*labtest.Namespace
	nl *netlink.Handle // the namespace's
}

func newHost(t testing.TB) *host {
	t.Helper()
	return hostIn(labtest.NewNamespace(t))
}

func hostIn(n *labtest.Namespace) *host { return &host{n, n.Netlink} }

func (h *host) do(t testing.TB, f func() error)             { t.Helper(); h.Do(t, f) }
func (h *host) address(t testing.TB, name, cidr string)     { t.Helper(); h.Address(t, name, cidr) }
func (h *host) sysctl(t testing.TB, key, value string)      { t.Helper(); h.Sysctl(t, key, value) }
func (h *host) mac(t testing.TB) net.HardwareAddr           { t.Helper(); return h.MAC(t) }
func (h *host) index(t testing.TB) int                      { t.Helper(); return h.Index(t) }
func (h *host) listen(t testing.TB, at string) net.Listener { t.Helper(); return h.Listen(t, at) }
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	labtest.Eventually(t, what, ok)
}

// neighbour makes h reach ip at mac.
func (h *host) neighbour(t testing.TB, ip string, mac net.HardwareAddr) {
	t.Helper()
	a := net.ParseIP(ip)
	family := unix.AF_INET6
	if a.To4() != nil {
		family = unix.AF_INET
	}
	if err := h.nl.NeighSet(&netlink.Neigh{
		LinkIndex: h.index(t), Family: family, State: netlink.NUD_PERMANENT, IP: a, HardwareAddr: mac,
	}); err != nil {
		t.Fatalf("neighbour %s: %v", ip, err)
	}
}

// dial connects from h; port 0 takes any.
func (h *host) dial(t testing.TB, port int, to string) (net.Conn, error) {
	t.Helper()
	var c net.Conn
	var failed error
	h.do(t, func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: port}}
		d.SetMultipathTCP(false)
		c, failed = d.DialContext(t.Context(), "tcp", to)
		return nil
	})
	return c, failed
}

func (h *host) open(t testing.TB, c Config) (*Gate, error) {
	t.Helper()
	var g *Gate
	var failed error
	h.do(t, func() error {
		g, failed = Open(c)
		return nil
	})
	return g, failed
}

// gated opens a gate at eth0 and runs it for the test's time.
func (h *host) gated(t testing.TB) *Gate {
	t.Helper()
	g, err := h.open(t, Config{Interfaces: []string{"eth0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	run(t, g) // stops first
	return g
}

// network is hosts on one bridge, as labtest.Network numbers them.
func network(t testing.TB, n int) []*host {
	t.Helper()
	var hosts []*host
	for _, h := range labtest.Network(t, n).Hosts {
		hosts = append(hosts, hostIn(h))
	}
	return hosts
}

// withVIP gives servers the service address without letting them answer ARP or ND for it.
func withVIP(t testing.TB, servers ...*host) {
	t.Helper()
	for _, h := range servers {
		h.sysctl(t, "net/ipv4/conf/all/arp_ignore", "1")
		h.sysctl(t, "net/ipv4/conf/all/arp_announce", "2")
		h.address(t, "lo", vip4+"/32")
		h.address(t, "lo", vip6+"/128")
	}
}

const (
	vip4 = "10.66.0.100"
	vip6 = "fd66::100"
)

// flowOf is the flow of a client's connection.
func flowOf(c net.Conn) tcprepair.Flow {
	return tcprepair.NewFlow(c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort())
}

// tcpInfo reads a connection's TCP_INFO.
func tcpInfo(t testing.TB, c net.Conn) *unix.TCPInfo {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return info
}

func setInt(t testing.TB, c net.Conn, level, option, value int) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, value) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}
