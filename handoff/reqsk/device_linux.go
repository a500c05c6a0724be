// SPDX-License-Identifier: Apache-2.0

package reqsk

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device is a tun interface of the Injector's own: what is written to one of its queues is received by this host as if it had come from
// a network. Nothing is ever routed to it. It goes with its last queue.
type device struct {
	name   string
	index  int
	queues []int // file descriptors
}

// newDevice makes the interface in the calling thread's network namespace.
func newDevice(nl *netlink.Handle, pattern string, queues int) (_ *device, err error) {
	d := &device{name: pattern}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for range queues {
		if err := d.addQueue(); err != nil {
			return nil, err
		}
	}
	link, err := nl.LinkByName(d.name)
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", d.name, err)
	}
	d.index = link.Attrs().Index
	if err := d.isolate(); err != nil {
		return nil, err
	}
	if err := nl.AddrAdd(link, dummyAddress()); err != nil {
		return nil, fmt.Errorf("device %s: address: %w", d.name, err)
	}
	// One frame is enough to learn that nothing should go out here.
	if err := nl.LinkSetTxQLen(link, 1); err != nil {
		return nil, fmt.Errorf("device %s: queue length: %w", d.name, err)
	}
	if err := nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("device %s: up: %w", d.name, err)
	}
	return d, d.unroute(nl)
}

// dummyAddress is the IPv4 dummy address (RFC 7600, 4.8), which no packet ever has. Where rp_filter is 2 (loose) for all devices,
// the kernel takes packets only from those that have an address.
func dummyAddress() *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_HOST, Flags: unix.IFA_F_NOPREFIXROUTE,
	}
}

func (d *device) addQueue() error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("%w: open /dev/net/tun (CONFIG_TUN, and the device in a container): %w", ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	d.queues = append(d.queues, fd)
	request, err := unix.NewIfreq(d.name)
	if err != nil {
		return fmt.Errorf("device name %q: %w", d.name, err)
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("make tun device %s: %w", d.name, err)
	}
	d.name = request.Name()
	return nil
}

// isolate sets what distinguishes the device from one that leads somewhere. It is named in paths, so it must be the thread's namespace.
func (d *device) isolate() error {
	for _, s := range []struct{ key, value string }{
		// A client's address is never reached through this device.
		{"ipv4/conf/" + d.name + "/rp_filter", "0"},
		{"ipv4/conf/" + d.name + "/forwarding", "0"},
		// No link-local address, so no router or neighbour solicitations.
		{"ipv6/conf/" + d.name + "/addr_gen_mode", "1"},
		{"ipv6/conf/" + d.name + "/accept_ra", "0"},
		{"ipv6/conf/" + d.name + "/forwarding", "0"},
		{"ipv6/conf/" + d.name + "/disable_ipv6", "0"},
	} {
		err := os.WriteFile("/proc/sys/net/"+s.key, []byte(s.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 on this host
			return fmt.Errorf("device %s: set net.%s: %w", d.name, s.key, err)
		}
	}
	return nil
}

// unroute takes away the multicast route that the kernel gives every IPv6 interface, lest other programs' multicast go this way.
func (d *device) unroute(nl *netlink.Handle) error {
	routes, err := nl.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: d.index, Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("device %s: list routes: %w", d.name, err)
	}
	for _, r := range routes {
		// A kernel without IPv6 may answer with the routes of IPv4.
		if r.Dst == nil || r.Dst.IP.To4() != nil || !r.Dst.IP.IsMulticast() {
			continue
		}
		if err := nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("device %s: remove route %v: %w", d.name, r.Dst, err)
		}
	}
	return nil
}

func (d *device) close() error {
	var errs []error
	for _, fd := range d.queues {
		errs = append(errs, unix.Close(fd))
	}
	d.queues = nil
	return errors.Join(errs...)
}
