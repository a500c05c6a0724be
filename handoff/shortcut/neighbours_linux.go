// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxNeighbours is how many are asked at most.
const maxNeighbours = 8

// Neighbours are the IPv4 addresses of who might answer on an interface. Those of named that are in the interface's networks are all that is
// returned, if any are named; otherwise its gateways, and the neighbours that the kernel knows.
func Neighbours(nl *netlink.Handle, ifindex int, named ...netip.Addr) ([]netip.Addr, error) {
	l, err := nl.LinkByIndex(ifindex)
	if err != nil {
		return nil, err
	}
	addresses, err := nl.AddrList(l, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	var peers []netip.Addr
	add := func(a netip.Addr) {
		if a = a.Unmap(); a.Is4() && len(peers) < maxNeighbours && !slices.Contains(peers, a) {
			peers = append(peers, a)
		}
	}
	for _, a := range named {
		for _, own := range addresses {
			if own.Contains(a.Unmap().AsSlice()) {
				add(a)
				break
			}
		}
	}
	if len(named) > 0 {
		return peers, nil
	}
	routes, err := nl.RouteList(l, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if a, ok := netip.AddrFromSlice(r.Gw); ok {
			add(a)
		}
	}
	known, err := nl.NeighList(ifindex, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	for _, n := range known {
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&(netlink.NUD_FAILED|netlink.NUD_NOARP|netlink.NUD_INCOMPLETE) == 0 {
			add(a)
		}
	}
	return peers, nil
}
