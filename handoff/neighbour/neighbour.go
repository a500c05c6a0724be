// SPDX-License-Identifier: Apache-2.0

// Package neighbour finds out how other hosts are reached at layer 2.
package neighbour

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
)

// How often the peers' link-layer addresses are looked up: while one is missing, and else.
const (
	hurry    = 50 * time.Millisecond
	interval = time.Second
)

// nextHop is where a peer's packets are sent.
type nextHop struct {
	ifindex  int
	dst, src net.HardwareAddr
}

func (h nextHop) equal(o nextHop) bool {
	return h.ifindex == o.ifindex && h.dst.String() == o.dst.String() && h.src.String() == o.src.String()
}

// Host is a host whose link-layer address is looked up.
type Host struct {
	Name string
	// Addr is its address on the wire, and MAC what the configuration says of its link-layer address, if anything.
	Addr netip.Addr
	MAC  string
	Node gate.Node
}

// Nodes is a packet path's table of hosts.
type Nodes interface {
	SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error
}

// Watch is Follow for hosts that stay the same.
func Watch(ctx context.Context, nodes Nodes, hosts []Host, learned func(Host, net.HardwareAddr), log *slog.Logger) error {
	return Follow(ctx, nodes, func() ([]Host, <-chan struct{}) { return hosts, nil }, learned, log)
}

// Follow keeps a packet path's table of hosts up to date (SARA S23's table of node and MAC) from the kernel's routes and neighbours,
// until ctx ends. list returns the hosts, and a channel that is closed as soon as there are others; nil when that never happens. Of a
// host that leaves the list the table keeps what it has. learned is told each new link-layer address. Call it in the hosts' network
// namespace.
func Follow(ctx context.Context, nodes Nodes, list func() ([]Host, <-chan struct{}), learned func(Host, net.HardwareAddr), log *slog.Logger) error {
	known := make(map[string]nextHop)
	for {
		hosts, changed := list()
		forget(known, hosts)
		pause := interval
		for _, h := range hosts {
			hop, err := find(h)
			if err != nil {
				log.Debug("a peer's link-layer address is not known yet", "peer", h.Name, "error", err)
				pause = hurry
				continue
			}
			if old, ok := known[h.Name]; ok && old.equal(hop) {
				continue
			}
			if err := nodes.SetNode(h.Node, hop.ifindex, hop.dst, hop.src); err != nil {
				log.Error("cannot reach a peer at layer 2", "peer", h.Name, "error", err)
				pause = hurry
				continue
			}
			known[h.Name] = hop
			learned(h, hop.dst)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-time.After(pause):
		}
	}
}

// forget removes the hosts that are not in the list any more: should one come back, it is told of anew.
func forget(known map[string]nextHop, hosts []Host) {
	for name := range known {
		if !slices.ContainsFunc(hosts, func(h Host) bool { return h.Name == name }) {
			delete(known, name)
		}
	}
}

// Locate puts a host into a packet path's table now, if its link-layer address is known; else it makes the kernel ask, as Find does.
func Locate(nodes Nodes, h Host) error {
	hop, err := find(h)
	if err != nil {
		return err
	}
	return nodes.SetNode(h.Node, hop.ifindex, hop.dst, hop.src)
}

// Find returns a host's link-layer address, or why it is not known. It may become known soon: the attempt makes the kernel ask.
func Find(h Host) (net.HardwareAddr, error) {
	hop, err := find(h)
	return hop.dst, err
}

// find asks the kernel's routing and neighbour tables.
func find(h Host) (nextHop, error) {
	routes, err := netlink.RouteGet(h.Addr.AsSlice())
	if err != nil || len(routes) == 0 {
		return nextHop{}, fmt.Errorf("no route to %v: %w", h.Addr, err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nextHop{}, err
	}
	hop := nextHop{ifindex: routes[0].LinkIndex, src: link.Attrs().HardwareAddr}
	if h.MAC != "" {
		hop.dst, err = net.ParseMAC(h.MAC)
		return hop, err
	}
	if routes[0].Gw != nil {
		return nextHop{}, fmt.Errorf("%v is behind the router %v: packets can be forwarded at layer 2 only", h.Addr, routes[0].Gw)
	}
	neighbours, err := netlink.NeighList(routes[0].LinkIndex, netlink.FAMILY_ALL)
	if err != nil {
		return nextHop{}, err
	}
	const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT | unix.NUD_NOARP
	for _, n := range neighbours {
		if n.IP.Equal(h.Addr.AsSlice()) && n.State&usable != 0 && len(n.HardwareAddr) > 0 {
			hop.dst = n.HardwareAddr
			return hop, nil
		}
	}
	provoke(h.Addr)
	return nextHop{}, fmt.Errorf("%v does not stand in the neighbour table yet", h.Addr)
}

// provoke sends a datagram to the discard port, which makes the kernel resolve the address.
func provoke(addr netip.Addr) {
	conn, err := net.Dial("udp", netip.AddrPortFrom(addr, 9).String())
	if err != nil {
		return
	}
	_, _ = conn.Write([]byte{0})
	_ = conn.Close()
}
