// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
)

const (
	protocolTCP = 6
	protocolUDP = 17
)

// tuple is a Key in 38 bytes without pointers. IPv4 addresses are in their IPv4-mapped form. Zones do not
// count. A tuple with a port of 0 is a pattern; packets with such a port are of no flow.
type tuple struct {
	client, server         [16]byte
	clientPort, serverPort uint16
	protocol               uint16
}

// pack reports whether the key names a flow; ports are not looked at.
func pack(k Key) (tuple, bool) {
	c, s := k.Client.Addr().Unmap(), k.Server.Addr().Unmap()
	if c.BitLen() == 0 || c.BitLen() != s.BitLen() || k.Protocol != protocolTCP && k.Protocol != protocolUDP {
		return tuple{}, false
	}
	return tuple{c.As16(), s.As16(), k.Client.Port(), k.Server.Port(), uint16(k.Protocol)}, true
}

// exact reports whether both ports are given.
func (t *tuple) exact() bool { return t.clientPort != 0 && t.serverPort != 0 }

func (t *tuple) key() Key {
	return Key{
		Client:   netip.AddrPortFrom(netip.AddrFrom16(t.client).Unmap(), t.clientPort),
		Server:   netip.AddrPortFrom(netip.AddrFrom16(t.server).Unmap(), t.serverPort),
		Protocol: uint8(t.protocol),
	}
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

// clientOf returns what a client is told by: the IPv4 address or the /64 of the IPv6 address, in which a host has as many addresses as
// it likes.
func clientOf(address [16]byte) [16]byte {
	if !netip.AddrFrom16(address).Is4In6() {
		clear(address[8:])
	}
	return address
}

// hasher makes digests. keep is all ones; tests clear bits in it, to see collisions.
type hasher struct {
	seed maphash.Seed
	keep uint32
}

func newHasher() hasher { return hasher{maphash.MakeSeed(), ^uint32(0)} }

func (h *hasher) bytes(b []byte) uint32 { return uint32(maphash.Bytes(h.seed, b)>>32) & h.keep }

// tuple hashes one block; maphash.Comparable takes half as long again.
func (h *hasher) tuple(t *tuple) uint32 {
	var b [40]byte
	copy(b[:16], t.client[:])
	copy(b[16:32], t.server[:])
	binary.NativeEndian.PutUint64(b[32:], uint64(t.clientPort)|uint64(t.serverPort)<<16|uint64(t.protocol)<<32)
	return h.bytes(b[:])
}
