// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// host is a network namespace of a test, without a name: it goes with its last handle, also when the test is killed.
type host struct {
	ns netns.NsHandle
	nl *netlink.Handle

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
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	h := &host{}
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if h.ns, err = netns.Get(); err != nil {
			return
		}
		if h.nl, err = netlink.NewHandleAt(h.ns); err != nil {
			return
		}
		for _, set := range []string{"default/accept_dad", "default/accept_ra", "default/router_solicitations"} {
			_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+set, []byte("0"), 0)
		}
	}()
	<-done
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() {
		h.nl.Close()
		_ = h.ns.Close()
	})
	h.up(t, "lo")
	return h
}

// do runs f on a thread inside the namespace; the thread is thrown away.
func (h *host) do(t testing.TB, f func() error) {
	t.Helper()
	if err := h.try(f); err != nil {
		t.Fatal(err)
	}
}

// try is do for goroutines other than the test's.
func (h *host) try(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(h.ns)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

func (h *host) up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := h.nl.LinkByName(name)
	if err == nil {
		err = h.nl.LinkSetUp(l)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	l, err = h.nl.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (h *host) address(t testing.TB, name, cidr string) {
	t.Helper()
	l, err := h.nl.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.nl.AddrAdd(l, a); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatalf("%s on %s: %v", cidr, name, err)
	}
}

func (h *host) sysctl(t testing.TB, key, value string) {
	t.Helper()
	h.do(t, func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

func (h *host) mac(t testing.TB) net.HardwareAddr {
	t.Helper()
	l, err := h.nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().HardwareAddr
}

func (h *host) index(t testing.TB) int {
	t.Helper()
	l, err := h.nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
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

func (h *host) listen(t testing.TB, at string) net.Listener {
	t.Helper()
	var l net.Listener
	h.do(t, func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		l, err = c.Listen(t.Context(), "tcp", at)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
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

// network is hosts on one bridge: host i has 10.66.0.i+1 and fd66::i+1 on eth0.
func network(t testing.TB, n int) []*host {
	t.Helper()
	hub := newHost(t)
	if err := hub.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "rhbr"}}); err != nil {
		t.Fatalf("bridge: %v", err)
	}
	bridge := hub.up(t, "rhbr")
	hosts := make([]*host, n)
	for i := range hosts {
		h := newHost(t)
		port := fmt.Sprintf("rhp%d", i)
		if err := hub.nl.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: bridge.Attrs().Index},
			PeerName:  "eth0", PeerNamespace: netlink.NsFd(h.ns),
		}); err != nil {
			t.Fatalf("veth: %v", err)
		}
		hub.up(t, port)
		h.up(t, "eth0")
		h.address(t, "eth0", fmt.Sprintf("10.66.0.%d/24", i+1))
		h.address(t, "eth0", fmt.Sprintf("fd66::%d/64", i+1))
		h.hub, h.port = hub, port
		hosts[i] = h
	}
	return hosts
}

// eventually waits until ok, for at most five seconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}
