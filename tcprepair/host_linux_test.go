// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is a network namespace with one interface, a TUN whose other end is the test's wire. The namespace lives as long as the
// thread that made it, which is never used for anything else again.
type host struct {
	name string
	tun  *os.File
	jobs chan func()
	// sent counts the TCP packets of the wire's connection that came out of the host, resets those among them with RST.
	sent, resets int
	// marks counts the packets by which settle finds out that the wire has seen all that the host sent before.
	marks int
}

// do runs f in the host's namespace and waits for it.
func (h *host) do(f func()) {
	done := make(chan struct{})
	h.jobs <- func() { defer close(done); f() }
	<-done
}

func newHost(tb testing.TB, name string, addrs ...string) *host {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: network namespaces, TUN devices and TCP_REPAIR")
	}
	h := &host{name: name, jobs: make(chan func())}
	go func() {
		// Never unlocked: the thread ends with the goroutine, and the namespace with the thread.
		runtime.LockOSThread()
		for f := range h.jobs {
			f()
		}
	}()
	var err error
	h.do(func() { err = h.setUp(addrs) })
	if err != nil {
		close(h.jobs)
		tb.Fatalf("host %s: %v", name, err)
	}
	tb.Cleanup(func() {
		_ = h.tun.Close()
		close(h.jobs)
	})
	return h
}

func (h *host) setUp(addrs []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open tun: %w", err)
	}
	ifr, err := unix.NewIfreq("tun0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return fmt.Errorf("make tun: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), "tun0")
	for _, name := range []string{"lo", "tun0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		for _, a := range addrs {
			if name == "lo" {
				continue
			}
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD // usable at once
			if err := netlink.AddrAdd(l, addr); err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
			if err := h.awaitPath(addr.IP); err != nil {
				return fmt.Errorf("%s: %w", a, err)
			}
		}
	}
	return nil
}

// awaitPath waits until what is sent from ip to the host's network comes out of the device: a little after it is up the kernel still
// drops packets, IPv6 above all, and the first SYN would be repeated after a second.
func (h *host) awaitPath(ip net.IP) error {
	if four := ip.To4(); four != nil {
		ip = four
	}
	to := slices.Clone(ip)
	to[len(to)-1] ^= 0x40
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: ip}, &net.UDPAddr{IP: to, Port: 9})
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is read
	buf := make([]byte, 2048)
	for range 1000 {
		if _, err := conn.Write([]byte{0}); err != nil {
			return err
		}
		if err := h.tun.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			return err
		}
		for {
			n, err := h.tun.Read(buf)
			if err != nil {
				break
			}
			if bytes.Contains(buf[:n], to) {
				return h.tun.SetReadDeadline(time.Time{})
			}
		}
	}
	return errors.New("nothing comes out of the device")
}

// sysctl sets net.* in the host's namespace.
func (h *host) sysctl(tb testing.TB, path, value string) {
	tb.Helper()
	var err error
	h.do(func() { err = os.WriteFile("/proc/sys/net/"+path, []byte(value), 0o600) })
	if err != nil {
		tb.Fatal(err)
	}
}
