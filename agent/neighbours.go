// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
)

// How often the peers' link-layer addresses are looked up: while one is missing, and else.
const (
	neighbourHurry    = 50 * time.Millisecond
	neighbourInterval = time.Second
)

// nextHop is where a peer's packets are sent.
type nextHop struct {
	ifindex  int
	dst, src net.HardwareAddr
}

func (h nextHop) equal(o nextHop) bool {
	return h.ifindex == o.ifindex && h.dst.String() == o.dst.String() && h.src.String() == o.src.String()
}

// watchNeighbours keeps the gate's table of hosts up to date (S23's table of node and MAC) from the kernel's
// routes and neighbours.
func (e *engine) watchNeighbours(ctx context.Context) error {
	known := make(map[string]nextHop)
	for {
		pause := neighbourInterval
		for _, p := range e.cfg.Peers {
			hop, err := findNextHop(p)
			if err != nil {
				e.log.Debug("a peer's link-layer address is not known yet", "peer", p.Name, "error", err)
				pause = neighbourHurry
				continue
			}
			if old, ok := known[p.Name]; ok && old.equal(hop) {
				continue
			}
			if err := e.gate.SetNode(gate.Node(p.ID), hop.ifindex, hop.dst, hop.src); err != nil {
				e.log.Error("cannot reach a peer at layer 2", "peer", p.Name, "error", err)
				pause = neighbourHurry
				continue
			}
			known[p.Name] = hop
			mac := hop.dst.String()
			e.post(func(e *engine) {
				if peer := e.peers[p.Name]; peer != nil {
					peer.mac = mac
				}
			})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// findNextHop asks the kernel's routing and neighbour tables.
func findNextHop(p PeerConfig) (nextHop, error) {
	addr, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return nextHop{}, err
	}
	routes, err := netlink.RouteGet(addr.Addr().AsSlice())
	if err != nil || len(routes) == 0 {
		return nextHop{}, fmt.Errorf("no route to %v: %w", addr.Addr(), err)
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return nextHop{}, err
	}
	hop := nextHop{ifindex: routes[0].LinkIndex, src: link.Attrs().HardwareAddr}
	if p.MAC != "" {
		hop.dst, err = net.ParseMAC(p.MAC)
		return hop, err
	}
	if routes[0].Gw != nil {
		return nextHop{}, fmt.Errorf("%v is behind the router %v: packets can be forwarded at layer 2 only", addr.Addr(), routes[0].Gw)
	}
	neighbours, err := netlink.NeighList(routes[0].LinkIndex, netlink.FAMILY_ALL)
	if err != nil {
		return nextHop{}, err
	}
	const usable = unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE | unix.NUD_PERMANENT | unix.NUD_NOARP
	for _, n := range neighbours {
		if n.IP.Equal(addr.Addr().AsSlice()) && n.State&usable != 0 && len(n.HardwareAddr) > 0 {
			hop.dst = n.HardwareAddr
			return hop, nil
		}
	}
	provoke(addr)
	return nextHop{}, fmt.Errorf("%v does not stand in the neighbour table yet", addr.Addr())
}

// provoke sends a datagram to the discard port, which makes the kernel resolve the address.
func provoke(addr netip.AddrPort) {
	conn, err := net.Dial("udp", netip.AddrPortFrom(addr.Addr(), 9).String())
	if err != nil {
		return
	}
	_, _ = conn.Write([]byte{0})
	_ = conn.Close()
}
