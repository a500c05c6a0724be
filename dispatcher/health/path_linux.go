// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	// firstTable is where the routing tables of a Path begin; they are its namespace's own.
	firstTable = 1000
	maxRoutes  = 4096
	// pathLink is the interface in the namespace.
	pathLink = "checks"
	// temporaryLink is its name in the host's namespace, for a moment, with the parent's index.
	temporaryLink = "rhchecks%d"
)

// PathConfig says where a Path goes out. Both fields are required.
type PathConfig struct {
	// Interface is the Ethernet interface that backends are reached by.
	Interface string
	// Addresses are the path's own, one for each IP version, with the length of the link's prefix: addresses that nobody has. Backends
	// answer to them directly.
	Addresses []netip.Prefix
}

func (c PathConfig) validate() error {
	if c.Interface == "" {
		return errors.New("interface: missing: name the one that backends are reached by")
	}
	if len(c.Addresses) == 0 {
		return errors.New("addresses: missing: give the checks an address of the backends' network, with its prefix length")
	}
	for _, a := range c.Addresses {
		if !a.IsValid() || a.Addr().IsUnspecified() {
			return fmt.Errorf("addresses: %v: want address/length", a)
		}
	}
	return nil
}

// Path leads packets for the virtual addresses to a backend of the caller's choice. Its methods are safe for concurrent use.
type Path struct {
	ns netns.NsHandle
	nl *netlink.Handle

	mu     sync.Mutex
	routes map[netip.Addr]int // tables, and marks
	closed bool
}

// OpenPath makes a path from the caller's network namespace. It needs CAP_NET_ADMIN and CAP_SYS_ADMIN, and macvlan in the kernel.
// Everything about it goes with Close, or with the process.
func OpenPath(config PathConfig) (_ *Path, err error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	p := &Path{ns: netns.None(), routes: make(map[netip.Addr]int)}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	host, err := netns.Get() // of the caller's thread
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	defer host.Close() //nolint:errcheck // a descriptor
	if err := apart(func() error { return p.build(config, host) }); err != nil {
		return nil, fmt.Errorf("path for checks on %s: %w", config.Interface, err)
	}
	return p, nil
}

// apart runs f on a thread that ends with it, so that f may change the thread's network namespace.
func apart(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// build makes namespace and interface. The thread is in the new namespace afterwards.
func (p *Path) build(config PathConfig, from netns.NsHandle) error {
	host, err := netlink.NewHandleAt(from)
	if err != nil {
		return err
	}
	defer host.Close()
	parent, err := host.LinkByName(config.Interface)
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace (CAP_SYS_ADMIN): %w", err)
	}
	if p.ns, err = netns.Get(); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.Namespace = fmt.Sprintf(temporaryLink, parent.Attrs().Index), parent.Attrs().Index, netlink.NsFd(int(p.ns))
	// Private: nothing passes between this interface and others of the same parent.
	if err := host.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_PRIVATE}); err != nil {
		return fmt.Errorf("macvlan interface (CAP_NET_ADMIN): %w", err)
	}
	if p.nl, err = netlink.NewHandleAt(p.ns); err != nil {
		return err
	}
	link, err := p.nl.LinkByName(attrs.Name)
	if err != nil {
		return err
	}
	// Answers come from addresses that the main table knows no way to. A new namespace may have inherited the filter from the host.
	for _, name := range []string{"all", "default", attrs.Name} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0); err != nil { // the thread's namespace's
			return err
		}
	}
	if err := p.nl.LinkSetName(link, pathLink); err != nil {
		return err
	}
	for _, a := range config.Addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := p.nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	return p.nl.LinkSetUp(link)
}

// Close ends the path. Probes under way may still use it until they end.
func (p *Path) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	p.closed = true
	if p.nl != nil {
		p.nl.Close()
	}
	if p.ns.IsOpen() {
		return p.ns.Close()
	}
	return nil
}

// To returns a dialer whose connections reach the backend with that address of its own, whatever address they are to. Virtual addresses
// must be of the same IP version.
func (p *Path) To(backend netip.Addr) (Dialer, error) {
	mark, err := p.route(backend.Unmap())
	if err != nil {
		return nil, fmt.Errorf("route to %v: %w", backend, err)
	}
	d := &net.Dialer{FallbackDelay: -1, Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) }); e != nil {
			return e
		}
		return err
	}}
	d.SetMultipathTCP(false)
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = apart(func() error {
			if err := p.enter(); err != nil {
				return err
			}
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}, nil
}

// enter moves the thread into the path's namespace.
func (p *Path) enter() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return net.ErrClosed
	}
	return netns.Set(p.ns)
}

// route has packets with a mark sent to a backend, and returns the mark.
func (p *Path) route(backend netip.Addr) (mark int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, net.ErrClosed
	}
	if mark, ok := p.routes[backend]; ok {
		return mark, nil
	}
	if len(p.routes) >= maxRoutes {
		return 0, fmt.Errorf("more than %d backends", maxRoutes)
	}
	table := firstTable + len(p.routes)
	link, err := p.nl.LinkByName(pathLink)
	if err != nil {
		return 0, err
	}
	family, all := netlink.FAMILY_V4, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if backend.Is6() {
		family, all = netlink.FAMILY_V6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	way := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: backend.AsSlice(), Table: table, Flags: int(netlink.FLAG_ONLINK)}
	if err := p.nl.RouteReplace(way); err != nil {
		return 0, err
	}
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Mark, rule.Priority = family, table, uint32(table), table
	if err := p.nl.RuleAdd(rule); err != nil {
		return 0, err
	}
	p.routes[backend] = table
	return table, nil
}
