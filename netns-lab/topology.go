// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
)

// Interface is the name of a host's one network interface, as seen in the host.
const Interface = "eth0"

// SwitchName is the reserved name of the host that holds the switch.
const SwitchName = "switch"

// Bounds of a Topology.
const (
	// MaxHosts bounds the hosts of one lab.
	MaxHosts = 64
	// maxHostName keeps "p-<host>" within the kernel's 15 characters of an interface name.
	maxHostName = 12
	// DefaultMTU is an Ethernet's.
	DefaultMTU = 1500
	minMTU     = 1280 // IPv6's least
	maxMTU     = 9000
)

// Role is what a host does with the virtual addresses.
type Role string

// The roles.
const (
	// RoleClient holds no virtual address.
	RoleClient Role = "client"
	// RoleServer holds every virtual address on lo and answers neither ARP nor neighbour discovery for it.
	RoleServer Role = "server"
	// RoleEntry holds every virtual address on its interface, so that it alone answers for it. An entry can serve too.
	RoleEntry Role = "entry"
)

// HostSpec describes one host.
type HostSpec struct {
	// Name is unique in the lab: a lower-case letter, then letters and digits, 12 at most.
	Name string `json:"name"`
	// Role decides where virtual addresses go.
	Role Role `json:"role"`
	// Addrs are the host's own addresses with the length of the link's prefix, of either family.
	Addrs []netip.Prefix `json:"addrs"`
	// MAC is the interface's address; empty means one made from the host's position.
	MAC string `json:"mac,omitempty"`
	// Sysctls are set after the lab's own, so that they win. Keys are dotted: "net.ipv4.tcp_syncookies".
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Addr4 returns the host's first IPv4 address, or the zero Addr.
func (h HostSpec) Addr4() netip.Addr { return h.first(netip.Addr.Is4) }

// Addr6 returns the host's first IPv6 address, or the zero Addr.
func (h HostSpec) Addr6() netip.Addr { return h.first(netip.Addr.Is6) }

func (h HostSpec) first(is func(netip.Addr) bool) netip.Addr {
	for _, p := range h.Addrs {
		if is(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// HostImpairment puts an impairment element between a host and the switch.
type HostImpairment struct {
	// Host is the host's name.
	Host string `json:"host"`
	// Up is applied to what the host sends, Down to what it receives.
	Up   Impairment `json:"up"`
	Down Impairment `json:"down"`
}

// Topology describes a lab: hosts on one switch, and the virtual addresses they share.
type Topology struct {
	// Name is unique on the machine: lower-case letters, digits and inner hyphens, 32 at most.
	Name string `json:"name"`
	// Hosts are the hosts, in order. The switch is not among them.
	Hosts []HostSpec `json:"hosts"`
	// VIPs are the virtual addresses, of either family.
	VIPs []netip.Addr `json:"vips,omitempty"`
	// MTU is that of every link, in bytes; 0 means 1500.
	MTU int `json:"mtu,omitempty"`
	// Impairments are inserted when the lab is built.
	Impairments []HostImpairment `json:"impairments,omitempty"`
}

// Standard returns the topology that most scenarios use: a client, an entry and the given number of servers a, b, c, ...
// (after z: a1, b1, ...) on 10.77.0.0/24 and fd77::/64, with the virtual addresses 10.77.0.100 and fd77::100.
// The client is .1, the entry .2, the servers .11 and up, and the same digits in IPv6. Name is "standard".
func Standard(servers int) Topology {
	t := Topology{
		Name: "standard",
		VIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 77, 0, 100}), netip.MustParseAddr("fd77::100")},
	}
	add := func(name string, role Role, n int) {
		t.Hosts = append(t.Hosts, HostSpec{Name: name, Role: role, Addrs: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, byte(n)}), 24),
			netip.PrefixFrom(decimal6(n), 64),
		}})
	}
	add("client", RoleClient, 1)
	add("entry", RoleEntry, 2)
	for i := range min(servers, MaxHosts-2) {
		name := string(rune('a' + i%26))
		if i >= 26 {
			name += fmt.Sprint(i / 26)
		}
		add(name, RoleServer, 11+i)
	}
	return t
}

// decimal6 returns fd77::n with the decimal digits of n as they are, so that .11 and ::11 are one host.
func decimal6(n int) netip.Addr {
	a := netip.MustParseAddr("fd77::").As16()
	a[15] = byte(n/10%10<<4 | n%10)
	a[14] = byte(n / 100)
	return netip.AddrFrom16(a)
}

// VIP4 returns the first IPv4 virtual address, or the zero Addr.
func (t Topology) VIP4() netip.Addr { return HostSpec{Addrs: hostPrefixes(t.VIPs)}.Addr4() }

// VIP6 returns the first IPv6 virtual address, or the zero Addr.
func (t Topology) VIP6() netip.Addr { return HostSpec{Addrs: hostPrefixes(t.VIPs)}.Addr6() }

func hostPrefixes(addrs []netip.Addr) []netip.Prefix {
	p := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		p = append(p, netip.PrefixFrom(a, a.BitLen()))
	}
	return p
}

// Validate reports the first thing that cannot be built, by name.
func (t Topology) Validate() error {
	if err := validLabName(t.Name); err != nil {
		return err
	}
	if len(t.Hosts) == 0 || len(t.Hosts) > MaxHosts {
		return fmt.Errorf("topology %s: %d hosts: want 1 to %d", t.Name, len(t.Hosts), MaxHosts)
	}
	if t.MTU != 0 && (t.MTU < minMTU || t.MTU > maxMTU) {
		return fmt.Errorf("topology %s: mtu %d: want %d to %d", t.Name, t.MTU, minMTU, maxMTU)
	}
	names := map[string]bool{SwitchName: true}
	addrs := make(map[netip.Addr]string)
	macs := make(map[string]string)
	entries := 0
	for i, h := range t.Hosts {
		if err := h.validate(); err != nil {
			return fmt.Errorf("topology %s: host %q: %w", t.Name, h.Name, err)
		}
		if names[h.Name] {
			return fmt.Errorf("topology %s: host %q: name is taken", t.Name, h.Name)
		}
		names[h.Name] = true
		mac, err := h.hardwareAddr(i)
		if err != nil {
			return fmt.Errorf("topology %s: host %q: %w", t.Name, h.Name, err)
		}
		if other, ok := macs[mac.String()]; ok {
			return fmt.Errorf("topology %s: host %q: MAC %s belongs to host %q", t.Name, h.Name, mac, other)
		}
		macs[mac.String()] = h.Name
		for _, p := range h.Addrs {
			if other, ok := addrs[p.Addr()]; ok {
				return fmt.Errorf("topology %s: host %q: address %s belongs to host %q", t.Name, h.Name, p.Addr(), other)
			}
			addrs[p.Addr()] = h.Name
		}
		if h.Role == RoleEntry {
			entries++
		}
	}
	if entries > 1 {
		return fmt.Errorf("topology %s: %d entries would all answer for the virtual addresses: want one", t.Name, entries)
	}
	for _, v := range t.VIPs {
		if !plain(v) {
			return fmt.Errorf("topology %s: virtual address %q: want a plain IPv4 or IPv6 address", t.Name, v)
		}
		if other, ok := addrs[v]; ok {
			return fmt.Errorf("topology %s: virtual address %s belongs to host %q", t.Name, v, other)
		}
		addrs[v] = "a virtual address"
	}
	impaired := make(map[string]bool)
	for _, im := range t.Impairments {
		if !names[im.Host] || im.Host == SwitchName || impaired[im.Host] {
			return fmt.Errorf("topology %s: impairment of %q: want each host once at most", t.Name, im.Host)
		}
		impaired[im.Host] = true
		if err := errors.Join(im.Up.Validate(), im.Down.Validate()); err != nil {
			return fmt.Errorf("topology %s: impairment of %q: %w", t.Name, im.Host, err)
		}
	}
	return nil
}

func (h HostSpec) validate() error {
	if ok, _ := regexp.MatchString(`^[a-z][a-z0-9]*$`, h.Name); !ok || len(h.Name) > maxHostName {
		return fmt.Errorf("name: want a lower-case letter, then letters and digits, %d at most", maxHostName)
	}
	switch h.Role {
	case RoleClient, RoleServer, RoleEntry:
	default:
		return fmt.Errorf("role %q: want %s, %s or %s", h.Role, RoleClient, RoleServer, RoleEntry)
	}
	for _, p := range h.Addrs {
		if !p.IsValid() || !plain(p.Addr()) {
			return fmt.Errorf("address %q: want ADDRESS/BITS, neither mapped nor with a zone", p)
		}
	}
	return nil
}

func plain(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

// hardwareAddr returns the host's MAC address; the default is locally administered and carries the host's position.
func (h HostSpec) hardwareAddr(position int) (net.HardwareAddr, error) {
	if h.MAC == "" {
		return net.HardwareAddr{0x02, 0x77, 0, 0, 0, byte(position + 1)}, nil
	}
	mac, err := net.ParseMAC(h.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("MAC %q: want six bytes, not a group address", h.MAC)
	}
	return mac, nil
}

// validLabName keeps the name usable in a path and keeps "rh-<lab>-<host>" unambiguous: hosts have no hyphen.
func validLabName(name string) error {
	if ok, _ := regexp.MatchString(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`, name); !ok {
		return fmt.Errorf("lab name %q: want lower-case letters, digits and inner hyphens, 32 at most", name)
	}
	return nil
}

// namespaceName returns the name of a host's network namespace under /run/netns.
func namespaceName(lab, host string) string { return "rh-" + lab + "-" + host }
