// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is one host of a standing lab. Its methods are safe for concurrent use until the lab is closed.
type Host struct {
	lab  *Lab
	spec HostSpec
	ns   *namespace
}

// Name returns the host's name in the lab.
func (h *Host) Name() string { return h.spec.Name }

// Spec returns what the host was built from.
func (h *Host) Spec() HostSpec { return h.spec }

// Namespace returns the name of the host's network namespace, as ip-netns(8) knows it.
func (h *Host) Namespace() string { return h.ns.name }

// Addr4 returns the host's own first IPv4 address, Addr6 its IPv6 address; the zero Addr if it has none.
func (h *Host) Addr4() netip.Addr { return h.spec.Addr4() }

// Addr6 is Addr4 for IPv6.
func (h *Host) Addr6() netip.Addr { return h.spec.Addr6() }

// Do runs f on an OS thread inside the host's network namespace and returns its error. Only that thread is there: what f starts with `go` runs outside, and a
// name with several addresses may be dialled from outside. Sockets, netlink handles and processes made in f stay in the namespace for good. The thread
// is discarded if it cannot be brought back. f must not call testing.T's FailNow: use its error.
func (h *Host) Do(f func() error) error { return h.ns.do(f) }

// Dial connects from the host to a literal address and port. It has the signature that http.Transport and grpc want. Multipath TCP is off.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in the host on a literal address and port; ":0" is any. Multipath TCP is off: TCP_REPAIR is refused on such a socket.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var l net.Listener
	err := h.Do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		l, err = c.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket is Listen for datagrams.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// literal refuses host names: the resolver would ask on another thread, outside the namespace.
func literal(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("address %q: want a literal address: %w", address, err)
	}
	return nil
}

// Sysctl returns the value of a dotted key, such as "net.ipv4.tcp_syncookies", in the host.
func (h *Host) Sysctl(key string) (string, error) {
	var value []byte
	err := h.Do(func() (err error) {
		value, err = os.ReadFile(sysctlPath(key))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("sysctl %s: %w", key, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// SetSysctl sets a dotted key in the host. Keys that are not of a network namespace change the whole machine: only "net." is taken.
func (h *Host) SetSysctl(key, value string) error {
	if !strings.HasPrefix(key, "net.") || strings.Contains(key, "/") {
		return fmt.Errorf("sysctl %s: want a dotted key below net", key)
	}
	err := h.Do(func() error { return os.WriteFile(sysctlPath(key), []byte(value), 0) })
	if err != nil {
		return fmt.Errorf("sysctl %s=%s: %w", key, value, err)
	}
	return nil
}

func sysctlPath(key string) string { return "/proc/sys/" + strings.ReplaceAll(key, ".", "/") }

// netlink runs f with a route handle of the host's namespace.
func (h *Host) netlink(f func(*netlink.Handle) error) error {
	handle, err := netlink.NewHandleAt(netns.NsHandle(h.ns.fd), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink in %s: %w", h.ns.name, err)
	}
	defer handle.Close()
	return f(handle)
}

// Neighbor is one entry of a host's ARP or neighbour table.
type Neighbor struct {
	// Addr is the neighbour's network address, MAC its link address (nil while unknown).
	Addr netip.Addr
	MAC  net.HardwareAddr
	// Permanent entries were set by hand; Failed ones did not answer.
	Permanent, Failed bool
}

// Neighbors returns the neighbours on the host's interface, multicast left out.
func (h *Host) Neighbors() ([]Neighbor, error) {
	var out []Neighbor
	err := h.netlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(Interface)
		if err != nil {
			return err
		}
		list, err := nl.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, n := range list {
			a, ok := netip.AddrFromSlice(n.IP)
			if !ok || a.Unmap().IsMulticast() || n.State&unix.NUD_NOARP != 0 {
				continue
			}
			out = append(out, Neighbor{
				Addr: a.Unmap(), MAC: n.HardwareAddr,
				Permanent: n.State&unix.NUD_PERMANENT != 0, Failed: n.State&unix.NUD_FAILED != 0,
			})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("neighbours of %s: %w", h.spec.Name, err)
	}
	return out, nil
}

// SetNeighbor makes a permanent entry: packets of the host to addr go to mac, whoever answers for addr.
func (h *Host) SetNeighbor(addr netip.Addr, mac net.HardwareAddr) error {
	err := h.netlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(Interface)
		if err != nil {
			return err
		}
		family := netlink.FAMILY_V4
		if addr.Is6() {
			family = netlink.FAMILY_V6
		}
		return nl.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: family, State: netlink.NUD_PERMANENT,
			IP: addr.AsSlice(), HardwareAddr: mac,
		})
	})
	if err != nil {
		return fmt.Errorf("neighbour %s of %s: %w", addr, h.spec.Name, err)
	}
	return nil
}

// Link is the state of a host's interface.
type Link struct {
	// Index and MAC are the interface's number and address in the host; MTU is in bytes.
	Index int
	MAC   net.HardwareAddr
	MTU   int
	// Received and Sent count packets and bytes since the lab was built. With segmentation offload a packet is a whole super-packet.
	Received, Sent Counters
}

// Counters count one direction of an interface.
type Counters struct{ Packets, Bytes, Dropped, Errors uint64 }

// Link returns the state of the host's interface now.
func (h *Host) Link() (Link, error) {
	out, err := h.link(Interface)
	if err != nil {
		return Link{}, fmt.Errorf("link of %s: %w", h.spec.Name, err)
	}
	return out, nil
}

// Port returns the state of the switch's end of a host's link: what it has received comes from the host, also what skipped the host's own
// end, whose counters do not know of it (bpf_redirect_peer).
func (h *Host) Port() (Link, error) {
	out, err := h.lab.sw.link(portName(h.spec.Name))
	if err != nil {
		return Link{}, fmt.Errorf("port of %s: %w", h.spec.Name, err)
	}
	return out, nil
}

func (h *Host) link(name string) (out Link, err error) {
	err = h.netlink(func(nl *netlink.Handle) error {
		link, err := nl.LinkByName(name)
		if err != nil {
			return err
		}
		a := link.Attrs()
		out = Link{Index: a.Index, MAC: a.HardwareAddr, MTU: a.MTU}
		if s := a.Statistics; s != nil {
			out.Received = Counters{s.RxPackets, s.RxBytes, s.RxDropped, s.RxErrors}
			out.Sent = Counters{s.TxPackets, s.TxBytes, s.TxDropped, s.TxErrors}
		}
		return nil
	})
	return out, err
}
