// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/tcprepair"
)

// Cookies asks a server's host to make connections out of first packets that carry a dispatcher's cookies (package cookie). It replaces
// the sender's last Cookies; no address means none any more. It holds beyond the connection that it came over.
type Cookies struct {
	// Secret makes cookies, Also is accepted, too: 16 bytes each, Also may be absent.
	Secret, Also []byte
	// WindowScale is the servers', as clients are told.
	WindowScale uint8
	// Addresses are the services': of each the address, then the port, in 6 or 18 bytes.
	Addresses [][]byte
	// Unmodified asks for an Unmodified, too, now and whenever that changes.
	Unmodified bool
}

// CookiesTaken answers Cookies: from now on it is so.
type CookiesTaken struct{}

// Unmodified tells a dispatcher that has asked for it whether this host can make connections for servers that know nothing of rehome.
type Unmodified struct {
	// Unable is why it cannot, and what to do; empty when it can.
	Unable string
}

// Unmade tells a dispatcher that a connection could not be made out of a first packet. The client has heard nothing.
type Unmade struct {
	Flow   tcprepair.Flow
	Reason string
}

// Endpoints returns the addresses of m.
func (m *Cookies) Endpoints() ([]netip.AddrPort, error) {
	all := make([]netip.AddrPort, 0, len(m.Addresses))
	for _, v := range m.Addresses {
		if len(v) != 6 && len(v) != 18 {
			return nil, fmt.Errorf("%w: address and port of %d bytes, want 6 or 18", ErrMalformed, len(v))
		}
		all = append(all, parseAddrPort(v))
	}
	return all, nil
}

// AppendEndpoint adds an address to m.
func (m *Cookies) AppendEndpoint(a netip.AddrPort) {
	m.Addresses = append(m.Addresses, binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

func (m *Cookies) code(c *coder) {
	c.bytes(1, &m.Secret)
	c.bytes(2, &m.Also)
	integer(c, 3, &m.WindowScale)
	c.list(4, &m.Addresses)
	c.flag(5, &m.Unmodified)
}

func (m *Unmodified) code(c *coder) { c.text(1, &m.Unable) }

func (m *CookiesTaken) code(*coder) {}

func (m *Unmade) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Reason)
}
