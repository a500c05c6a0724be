// SPDX-License-Identifier: Apache-2.0

package session

import "net/netip"

const (
	protocolTCP = 6
	protocolUDP = 17
)

// tuple is a Key without pointers. A tuple with a port of 0 is a pattern; packets with such a port are of no flow.
type tuple struct {
	from, to address // the client's and the server's
	ends
}

// ends is the rest of a tuple, which is a type because the record of a flow goes on right behind it.
type ends struct{ clientPort, serverPort, protocol uint16 }

// pack makes t the key's, and reports whether that names a flow; ports are not looked at. It goes by pointers because what a function returns in
// several registers is written to memory, and then copied in larger pieces: see mapped4.
func (t *tuple) pack(k *Key) bool {
	c, s := k.Client.Addr(), k.Server.Addr()
	if k.Protocol != protocolTCP && k.Protocol != protocolUDP {
		return false
	}
	if c.Is4() && s.Is4() {
		t.from, t.to = mapped4(c.As4()), mapped4(s.As4())
	} else {
		c, s = c.Unmap(), s.Unmap()
		if !c.IsValid() || !s.IsValid() || c.Is4() != s.Is4() {
			return false
		}
		t.from, t.to = addressOf(c), addressOf(s)
	}
	t.clientPort, t.serverPort, t.protocol = k.Client.Port(), k.Server.Port(), uint16(k.Protocol)
	return true
}

// exact reports whether both ports are given.
func (t *tuple) exact() bool { return t.clientPort != 0 && t.serverPort != 0 }

func (t *tuple) key() Key {
	return Key{netip.AddrPortFrom(t.from.ip(), t.clientPort), netip.AddrPortFrom(t.to.ip(), t.serverPort), uint8(t.protocol)}
}

// openings says which port of a pattern is open.
type openings uint8

const (
	clientOpen openings = 1 << iota
	serverOpen
)

func (t *tuple) openings() (o openings) {
	if t.clientPort == 0 {
		o |= clientOpen
	}
	if t.serverPort == 0 {
		o |= serverOpen
	}
	return o
}

// with returns the pattern that has those ports open.
func (t tuple) with(o openings) tuple {
	if o&clientOpen != 0 {
		t.clientPort = 0
	}
	if o&serverOpen != 0 {
		t.serverPort = 0
	}
	return t
}

// next returns the tuple of the ports that follow: RTCP's, where this one is RTP's (RFC 3550 section 11). An open port stays open, and
// after the last port comes none.
func (t tuple) next() tuple {
	for _, port := range []*uint16{&t.clientPort, &t.serverPort} {
		if *port != 0 && *port != 0xffff {
			*port++
		}
	}
	return t
}
