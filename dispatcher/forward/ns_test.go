// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"net"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// host is a namespace of a test that can have a forwarder.
type host struct {
	*labtest.Namespace
	nl *netlink.Handle // the namespace's

	hub  *host // where the other end of eth0 is
	port string
}

func newHost(t testing.TB) *host {
	t.Helper()
	if err := haveTCX(); errors.Is(err, unix.EINVAL) {
		t.Skipf("needs tcx (Linux 6.6): %v", err)
	}
	return newNamespace(t)
}

// newNamespace is newHost also where the kernel has not what a forwarder needs.
func newNamespace(t testing.TB) *host {
	t.Helper()
	return hostIn(labtest.NewNamespace(t))
}

func hostIn(n *labtest.Namespace) *host { return &host{Namespace: n, nl: n.Netlink} }

func (h *host) do(t testing.TB, f func() error)             { t.Helper(); h.Do(t, f) }
func (h *host) try(f func() error) error                    { return h.Try(f) }
func (h *host) address(t testing.TB, name, cidr string)     { t.Helper(); h.Address(t, name, cidr) }
func (h *host) sysctl(t testing.TB, key, value string)      { t.Helper(); h.Sysctl(t, key, value) }
func (h *host) mac(t testing.TB) net.HardwareAddr           { t.Helper(); return h.MAC(t) }
func (h *host) index(t testing.TB) int                      { t.Helper(); return h.Index(t) }
func (h *host) listen(t testing.TB, at string) net.Listener { t.Helper(); return h.Listen(t, at) }
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	labtest.Eventually(t, what, ok)
}

// Commands of SIOCETHTOOL.
const (
	ethtoolChecksum = 0x17 // ETHTOOL_STXCSUM
	ethtoolGRO      = 0x2c // ETHTOOL_SGRO
)

// offload turns something that an interface does for its host on or off.
func (h *host) offload(t testing.TB, name string, command, on uint32) {
	t.Helper()
	h.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		value := [2]uint32{command, on}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:], name)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
			return errno
		}
		return nil
	})
}

func (h *host) open(t testing.TB, c Config) (*Forwarder, error) {
	t.Helper()
	var f *Forwarder
	var failed error
	h.do(t, func() error {
		f, failed = Open(c)
		return nil
	})
	return f, failed
}

// forwarder opens one at eth0 for the test's time. It is small unless the configuration says otherwise.
func (h *host) forwarder(t testing.TB, c Config) *Forwarder {
	t.Helper()
	c.Interfaces = []string{"eth0"}
	if c.MaxFlows == 0 {
		c.MaxFlows = 1000
	}
	f, err := h.open(t, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// network is hosts on one bridge, as labtest.Network numbers them.
func network(t testing.TB, n int) []*host {
	t.Helper()
	b := labtest.Network(t, n)
	hub := hostIn(b.Hub)
	var hosts []*host
	for i, n := range b.Hosts {
		h := hostIn(n)
		h.hub, h.port = hub, b.Port(i)
		hosts = append(hosts, h)
	}
	return hosts
}
