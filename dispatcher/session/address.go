// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"net/netip"
)

// address is an IP address as two numbers; IPv4 addresses are in their IPv4-mapped form. Zones do not count.
type address struct{ high, low uint64 }

// mapped is what stands before the 32 bits of an IPv4 address (RFC 4291 section 2.5.5.2).
const mapped = 0xffff

// addressOf has a way of its own for IPv4: see mapped4.
func addressOf(a netip.Addr) address {
	if a.Is4() {
		return mapped4(a.As4())
	}
	b := a.As16()
	return address{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// mapped4 makes the four bytes a number in one step. Sixteen are written as two halves and copied as a whole, for which the CPU waits until the halves
// have reached its cache.
func mapped4(b [4]byte) address {
	return address{0, mapped<<32 | uint64(binary.BigEndian.Uint32(b[:]))}
}

func (a address) ip() netip.Addr {
	if a.is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(a.low))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.high)
	binary.BigEndian.PutUint64(b[8:], a.low)
	return netip.AddrFrom16(b)
}

func (a address) is4() bool { return a.high == 0 && a.low>>32 == mapped }

// clientOf returns what a client is told by: the IPv4 address or the /64 of the IPv6 address, in which a host has as many addresses as
// it likes.
func clientOf(a address) address {
	if !a.is4() {
		a.low = 0
	}
	return a
}
