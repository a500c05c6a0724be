// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"fmt"
	"net/netip"
	"strings"
)

// Flow names one TCP connection as its server sees it: the addresses that stand in the client's packets as destination
// (Local) and source (Remote). Both are unmapped: a connection of an IPv6 socket to ::ffff:192.0.2.1 is an
// IPv4 flow, because that is what the wire, the gate and the entry see.
type Flow struct {
	Local  netip.AddrPort
	Remote netip.AddrPort
}

// NewFlow returns the flow of a server socket with the given local and remote address, unmapped and without zones.
func NewFlow(local, remote netip.AddrPort) Flow {
	return Flow{Local: unmap(local), Remote: unmap(remote)}
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// IsValid reports whether both ends are set, of one address family and have ports.
func (f Flow) IsValid() bool {
	return f.Local.IsValid() && f.Remote.IsValid() &&
		f.Local.Addr().Is4() == f.Remote.Addr().Is4() &&
		!f.Local.Addr().Is4In6() && !f.Remote.Addr().Is4In6() &&
		f.Local.Port() != 0 && f.Remote.Port() != 0
}

// String returns the flow as client-server, such as "192.0.2.7:40312-198.51.100.1:443". ParseFlow reads it back.
func (f Flow) String() string {
	return f.Remote.String() + "-" + f.Local.String()
}

// ParseFlow reads what Flow.String wrote.
func ParseFlow(s string) (Flow, error) {
	client, server, ok := strings.Cut(s, "-")
	if !ok {
		return Flow{}, fmt.Errorf("flow %q: want CLIENT:PORT-SERVER:PORT, such as 192.0.2.7:40312-198.51.100.1:443", s)
	}
	remote, err := netip.ParseAddrPort(client)
	if err != nil {
		return Flow{}, fmt.Errorf("flow %q: client end: %w", s, err)
	}
	local, err := netip.ParseAddrPort(server)
	if err != nil {
		return Flow{}, fmt.Errorf("flow %q: server end: %w", s, err)
	}
	f := NewFlow(local, remote)
	if !f.IsValid() {
		return Flow{}, fmt.Errorf("flow %q: both ends need an address of one family and a port", s)
	}
	return f, nil
}

// MarshalText implements encoding.TextMarshaler.
func (f Flow) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Flow) UnmarshalText(b []byte) error {
	p, err := ParseFlow(string(b))
	if err != nil {
		return err
	}
	*f = p
	return nil
}
