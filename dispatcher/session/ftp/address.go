// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"bytes"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// parsePort reads PORT's six numbers (RFC 959, 5.3.2).
func parsePort(b []byte) (inspect.Stream, bool) {
	a, rest, ok := six(b)
	return data(a), ok && len(rest) == 0
}

// parsePassive finds the six numbers in the text of a 227, wherever they stand (RFC 1123, 4.1.2.6).
func parsePassive(b []byte) (inspect.Stream, bool) {
	for i := range b {
		if !digit(b[i]) || i > 0 && (digit(b[i-1]) || b[i-1] == ',') {
			continue
		}
		if a, rest, ok := six(b[i:]); ok && (len(rest) == 0 || !digit(rest[0]) && rest[0] != ',') {
			return data(a), a.Port() != 0
		}
	}
	return inspect.Stream{}, false
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

// six reads an address and a port as six numbers with commas.
func six(b []byte) (a netip.AddrPort, rest []byte, ok bool) {
	var n [6]byte
	for i := range n {
		end := 0
		for end < len(b) && end < 4 && digit(b[end]) {
			end++
		}
		v, ok := inspect.Number(b[:end], 0xff)
		if !ok {
			return a, nil, false
		}
		n[i], b = byte(v), b[end:]
		if i == len(n)-1 {
			break
		}
		if len(b) == 0 || b[0] != ',' {
			return a, nil, false
		}
		b = b[1:]
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(n[:4])), uint16(n[4])<<8|uint16(n[5])), b, true
}

// parseExtended reads EPRT's argument: |family|address|port| with any delimiter (RFC 2428, 2).
func parseExtended(b []byte) (inspect.Stream, bool) {
	parts, ok := delimited(b)
	if !ok || len(b) != len(parts[0])+len(parts[1])+len(parts[2])+4 {
		return inspect.Stream{}, false
	}
	ip, err := netip.ParseAddr(string(parts[1]))
	family := "1"
	if ip.Is6() {
		family = "2"
	}
	if err != nil || ip.Zone() != "" || string(parts[0]) != family {
		return inspect.Stream{}, false
	}
	n, ok := inspect.Number(parts[2], 0xffff)
	return data(netip.AddrPortFrom(ip.Unmap(), uint16(n))), ok && n > 0
}

// parseExtendedPassive finds (|||port|) in the text of a 229 (RFC 2428, 3). Family and address are left out; a server
// that says them means what it says.
func parseExtendedPassive(b []byte) (inspect.Stream, bool) {
	_, b, ok := bytes.Cut(b, []byte("("))
	if !ok {
		return inspect.Stream{}, false
	}
	parts, ok := delimited(b)
	if !ok {
		return inspect.Stream{}, false
	}
	n, ok := inspect.Number(parts[2], 0xffff)
	var ip netip.Addr
	if len(parts[1]) > 0 {
		a, err := netip.ParseAddr(string(parts[1]))
		if err != nil {
			return inspect.Stream{}, false
		}
		ip = a.Unmap().WithZone("")
	}
	return data(netip.AddrPortFrom(ip, uint16(n))), ok && n > 0
}

// delimited splits at the delimiter that b begins with, a printable character: three parts, each with a delimiter behind it.
func delimited(b []byte) (parts [3][]byte, ok bool) {
	if len(b) == 0 || b[0] < 33 || b[0] > 126 || digit(b[0]) {
		return parts, false
	}
	delimiter := b[:1]
	b = b[1:]
	for i := range parts {
		if parts[i], b, ok = bytes.Cut(b, delimiter); !ok {
			return parts, false
		}
	}
	return parts, true
}

func data(a netip.AddrPort) inspect.Stream { return inspect.Stream{Transport: inspect.TCP, RTP: a} }
