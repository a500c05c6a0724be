// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeName is the switch's bridge.
const bridgeName = "br0"

// portName is a host's end at the switch.
func portName(host string) string { return "p-" + host }

// hostSysctls are set in every host before its interface exists, so that "default" applies to it.
func hostSysctls() map[string]string {
	return map[string]string{
		// A virtual address on lo is not answered for on the interface, and never the sender of an ARP request.
		"net.ipv4.conf.all.arp_ignore":       "1",
		"net.ipv4.conf.all.arp_announce":     "2",
		"net.ipv4.conf.all.rp_filter":        "0",
		"net.ipv4.conf.default.rp_filter":    "0",
		"net.ipv4.conf.all.accept_redirects": "0",
		"net.ipv4.conf.all.send_redirects":   "0",
		// Addresses are usable at once: no duplicate address detection, no waiting for routers. The kernel takes the larger of all and default.
		"net.ipv6.conf.all.accept_dad":               "0",
		"net.ipv6.conf.default.accept_dad":           "0",
		"net.ipv6.conf.default.dad_transmits":        "0",
		"net.ipv6.conf.default.accept_ra":            "0",
		"net.ipv6.conf.default.router_solicitations": "0",
		// A connection does not start with what the kernel learned from the one before.
		"net.ipv4.tcp_no_metrics_save": "1",
		// The kernel's own defaults (for 4 GiB and more), whatever this machine's are.
		"net.ipv4.tcp_rmem": "4096 131072 6291456",
		"net.ipv4.tcp_wmem": "4096 16384 4194304",
	}
}

// switchSysctls keep the switch silent and its bridges out of netfilter.
func switchSysctls() map[string]string {
	return map[string]string{
		"net.ipv6.conf.all.disable_ipv6":     "1",
		"net.ipv6.conf.default.disable_ipv6": "1",
	}
}

// netfilterSysctls exist only where the kernel has bridge netfilter.
func netfilterSysctls() []string {
	return []string{
		"net.bridge.bridge-nf-call-iptables",
		"net.bridge.bridge-nf-call-ip6tables",
		"net.bridge.bridge-nf-call-arptables",
	}
}

func (h *Host) setSysctls(values map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := h.SetSysctl(key, values[key]); err != nil {
			return err
		}
	}
	return nil
}

// setUpSwitch makes the bridge to which all hosts are linked.
func (h *Host) setUpSwitch(mtu int) error {
	if err := h.setSysctls(switchSysctls()); err != nil {
		return err
	}
	for _, key := range netfilterSysctls() {
		if err := h.SetSysctl(key, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return h.netlink(func(nl *netlink.Handle) error { return addBridge(nl, bridgeName, mtu) })
}

// addBridge makes a bridge that is up. It does not snoop: with nobody to query, snooping loses neighbour discovery.
func addBridge(nl *netlink.Handle, name string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.MTU = mtu
	snoop := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
	if err := nl.LinkAdd(bridge); err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	if err := nl.LinkSetUp(bridge); err != nil {
		return fmt.Errorf("bridge %s up: %w", name, err)
	}
	return nil
}

// setUp links the host to the switch and gives it its addresses.
func (h *Host) setUp(t Topology, position int) error {
	if err := h.setSysctls(hostSysctls()); err != nil {
		return err
	}
	mac, err := h.spec.hardwareAddr(position)
	if err != nil {
		return err
	}
	if err := h.lab.sw.netlink(func(nl *netlink.Handle) error { return h.addLink(nl, t.MTU, mac) }); err != nil {
		return err
	}
	if err := h.netlink(func(nl *netlink.Handle) error { return h.configure(nl, t.VIPs) }); err != nil {
		return err
	}
	return h.setSysctls(h.spec.Sysctls)
}

// addLink makes the veth pair with both ends where they belong. nl is the switch's.
func (h *Host) addLink(nl *netlink.Handle, mtu int, mac net.HardwareAddr) error {
	bridge, err := nl.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", bridgeName, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = portName(h.spec.Name)
	attrs.MTU = mtu
	attrs.MasterIndex = bridge.Attrs().Index
	veth := netlink.NewVeth(attrs)
	veth.PeerName = Interface
	veth.PeerHardwareAddr = mac
	veth.PeerMTU = uint32(mtu)
	veth.PeerNamespace = netlink.NsFd(h.ns.fd)
	if err := nl.LinkAdd(veth); err != nil {
		return fmt.Errorf("veth %s: %w", attrs.Name, err)
	}
	if err := nl.LinkSetUp(veth); err != nil {
		return fmt.Errorf("veth %s up: %w", attrs.Name, err)
	}
	return nil
}

// configure brings up the host's interfaces. nl is the host's.
func (h *Host) configure(nl *netlink.Handle, vips []netip.Addr) error {
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	eth, err := nl.LinkByName(Interface)
	if err != nil {
		return fmt.Errorf("%s: %w", Interface, err)
	}
	for _, link := range []netlink.Link{lo, eth} {
		if err := nl.LinkSetUp(link); err != nil {
			return fmt.Errorf("%s up: %w", link.Attrs().Name, err)
		}
	}
	// Own addresses come first: the kernel prefers the first as a source.
	for _, p := range h.spec.Addrs {
		if err := addAddress(nl, eth, p, false); err != nil {
			return err
		}
	}
	on := map[Role]netlink.Link{RoleServer: lo, RoleEntry: eth}[h.spec.Role]
	if on == nil {
		return nil
	}
	for _, p := range hostPrefixes(vips) {
		if err := addAddress(nl, on, p, true); err != nil {
			return err
		}
	}
	return nil
}

// addAddress adds an address that is usable at once. A virtual IPv6 address is added as deprecated: it is answered for and accepts connections, but
// the kernel does not choose it as the source of new ones, which by the rule of the longest prefix it would.
func addAddress(nl *netlink.Handle, link netlink.Link, p netip.Prefix, virtual bool) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
		if virtual {
			a.ValidLft, a.PreferedLft = math.MaxInt32, 0
		}
	}
	if err := nl.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}
