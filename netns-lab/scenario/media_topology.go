// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// GatewayHost is the router between the servers' network and the client's, in the lab of Media.
const GatewayHost = "gw"

// The servers of Media.
const (
	MediaHost1 = "b1"
	MediaHost2 = "b2"
	MediaHost3 = "b3"
)

// MediaTopology returns the lab of Media: the client is in a network of its own, so that what servers answer goes through the
// gateway and not through the front.
//
//	client 10.78.0.1 ── switch ── front 10.77.0.2 (VIP 10.77.0.100)    the client's route to the VIP is its own link
//	                      │  └─── b1, b2, b3 10.77.0.11-13 (VIP on lo)  default route 10.77.0.254
//	                      └────── gw 10.77.0.254, 10.78.0.254
func MediaTopology(name string) netnslab.Topology {
	t := DispatchTopology(name)
	t.Hosts[0].Addrs = []netip.Prefix{netip.MustParsePrefix("10.78.0.1/24"), netip.MustParsePrefix("fd78::1/64")}
	for i, host := range []string{MediaHost1, MediaHost2, MediaHost3} {
		t.Hosts[2+i].Name = host
	}
	t.Hosts = append(t.Hosts, netnslab.HostSpec{
		Name: GatewayHost, Role: netnslab.RoleClient,
		Addrs: []netip.Prefix{
			netip.MustParsePrefix("10.77.0.254/24"), netip.MustParsePrefix("fd77::254/64"),
			netip.MustParsePrefix("10.78.0.254/24"), netip.MustParsePrefix("fd78::254/64"),
		},
		Sysctls: map[string]string{
			"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1",
			"net.ipv4.conf.default.send_redirects": "0", // both networks are on one link
		},
	})
	return t
}

// setMediaRoutes makes the routes of MediaTopology.
func setMediaRoutes(lab *netnslab.Lab) error {
	for _, h := range lab.Hosts() {
		routes := map[string]string{"0.0.0.0/0": "10.77.0.254", "::/0": "fd77::254"}
		switch h.Name() {
		case GatewayHost:
			continue
		case ClientHost:
			routes = map[string]string{"0.0.0.0/0": "10.78.0.254", "::/0": "fd78::254"}
			for _, vip := range lab.Topology().VIPs {
				routes[netip.PrefixFrom(vip, vip.BitLen()).String()] = ""
			}
		}
		for to, via := range routes {
			if err := addRoute(h, to, via); err != nil {
				return fmt.Errorf("%s: route to %s: %w", h.Name(), to, err)
			}
		}
	}
	return nil
}

// addRoute adds a route to a host, to its own link when via is empty.
func addRoute(h *netnslab.Host, to, via string) error {
	_, network, err := net.ParseCIDR(to)
	if err != nil {
		return err
	}
	return h.Do(func() error {
		l, err := netlink.LinkByName(netnslab.Interface)
		if err != nil {
			return err
		}
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: network, Gw: net.ParseIP(via)}
		if via == "" {
			r.Scope = netlink.SCOPE_LINK
		}
		return netlink.RouteAdd(r)
	})
}
