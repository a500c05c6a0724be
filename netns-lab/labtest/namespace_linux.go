// SPDX-License-Identifier: Apache-2.0

package labtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// patience bounds Eventually.
const patience = 5 * time.Second

// Namespace is a network namespace of a test, without a name: it goes with its last handle, also when the test is killed. It is less than a Host, and
// made in a few milliseconds.
type Namespace struct {
	// Netlink speaks to the kernel about the namespace.
	Netlink *netlink.Handle
	ns      netns.NsHandle
}

// NewNamespace makes a namespace for the test's time, with its loopback up. Without root the test is skipped.
func NewNamespace(t testing.TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	n := &Namespace{}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		made <- n.make()
	}()
	if err := <-made; err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	t.Cleanup(func() {
		n.Netlink.Close()
		_ = n.ns.Close()
	})
	n.Up(t, "lo")
	return n
}

// make leaves the calling thread in the namespace.
func (n *Namespace) make() (err error) {
	if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if n.ns, err = netns.Get(); err != nil {
		return err
	}
	if n.Netlink, err = netlink.NewHandleAt(n.ns); err != nil {
		return errors.Join(err, n.ns.Close())
	}
	// Where there is no IPv6, there is nothing to set.
	for _, set := range []string{"default/accept_dad", "default/accept_ra", "default/router_solicitations"} {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+set, []byte("0"), 0)
	}
	return nil
}

// Do runs f on a thread inside the namespace; the thread is thrown away.
func (n *Namespace) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Try(f); err != nil {
		t.Fatal(err)
	}
}

// Try is Do for goroutines other than the test's.
func (n *Namespace) Try(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(n.ns)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// Link returns an interface as it is now.
func (n *Namespace) Link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := n.Netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return l
}

// Up switches an interface on, and returns it as it is then.
func (n *Namespace) Up(t testing.TB, name string) netlink.Link {
	t.Helper()
	if err := n.Netlink.LinkSetUp(n.Link(t, name)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n.Link(t, name)
}

// Address gives an interface an address with its prefix length; twice is no error.
func (n *Namespace) Address(t testing.TB, name, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := n.Netlink.AddrAdd(n.Link(t, name), a); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatalf("%s on %s: %v", cidr, name, err)
	}
}

// Sysctl sets a value beneath /proc/sys.
func (n *Namespace) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	n.Do(t, func() error { return os.WriteFile("/proc/sys/"+key, []byte(value), 0) })
}

// MAC returns the link-layer address of eth0, and Index its number.
func (n *Namespace) MAC(t testing.TB) net.HardwareAddr {
	t.Helper()
	return n.Link(t, netnslab.Interface).Attrs().HardwareAddr
}

// Index is described at MAC.
func (n *Namespace) Index(t testing.TB) int {
	t.Helper()
	return n.Link(t, netnslab.Interface).Attrs().Index
}

// Listen listens for TCP inside the namespace, without MPTCP, for the test's time.
func (n *Namespace) Listen(t testing.TB, at string) net.Listener {
	t.Helper()
	var l net.Listener
	n.Do(t, func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		l, err = c.Listen(t.Context(), "tcp", at)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// Bridged is namespaces on one bridge.
type Bridged struct {
	// Hosts are the namespaces: number i has 10.66.0.i+1 and fd66::i+1 on eth0.
	Hosts []*Namespace
	// Hub has the bridge, with an interface to each of Hosts, which Port names.
	Hub *Namespace
}

// Port returns the name, in Hub, of the other end of a host's eth0.
func (Bridged) Port(host int) string { return fmt.Sprintf("rhp%d", host) }

// Network makes n namespaces on a bridge, for the test's time.
func Network(t testing.TB, n int) Bridged {
	t.Helper()
	b := Bridged{Hub: NewNamespace(t)}
	if err := b.Hub.Netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "rhbr"}}); err != nil {
		t.Fatalf("bridge: %v", err)
	}
	bridge := b.Hub.Up(t, "rhbr")
	for i := range n {
		h := NewNamespace(t)
		if err := b.Hub.Netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: b.Port(i), MasterIndex: bridge.Attrs().Index},
			PeerName:  netnslab.Interface, PeerNamespace: netlink.NsFd(h.ns),
		}); err != nil {
			t.Fatalf("veth: %v", err)
		}
		b.Hub.Up(t, b.Port(i))
		h.Up(t, netnslab.Interface)
		h.Address(t, netnslab.Interface, fmt.Sprintf("10.66.0.%d/24", i+1))
		h.Address(t, netnslab.Interface, fmt.Sprintf("fd66::%d/64", i+1))
		b.Hosts = append(b.Hosts, h)
	}
	return b
}

// Eventually waits until ok, for at most five seconds.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
