// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"
)

const (
	maxProxy1    = 107 // the longest line of version 1 with its CRLF (PROXY protocol, 2.1)
	proxy1Start  = "PROXY "
	proxy2Start  = "\r\n\r\n\x00\r\nQUIT\n"
	proxy2Header = 16
)

// ProxyHeader is what a proxy in front said of the connection: HAProxy's PROXY protocol, version 1 or 2.
type ProxyHeader struct {
	// Len of the header in bytes. A server that does not expect the header must not be given it: those bytes are to be
	// taken off the receive queue first.
	Len int
	// Version 1 (text) or 2 (binary).
	Version int
	// Source and Destination of the client's connection to the proxy. Not valid if the proxy did not know them (UNKNOWN,
	// UNSPEC), if they are no IP addresses (UNIX), or if Local.
	Source, Destination netip.AddrPort
	// Local: the connection is the proxy's own, a health check for instance. Its addresses are the connection's.
	Local bool
}

// parseProxy reads a header at the start of b. While it is incomplete, need says how many bytes it has at least.
func parseProxy(b []byte) (h ProxyHeader, need int, r Reason) {
	switch {
	case len(b) == 0:
		return h, 0, incomplete
	case strings.HasPrefix(proxy1Start, string(b[:min(len(b), len(proxy1Start))])):
		return parseProxy1(b[:min(len(b), maxProxy1)])
	case strings.HasPrefix(proxy2Start, string(b[:min(len(b), len(proxy2Start))])):
		return parseProxy2(b)
	}
	return h, 0, ProxyMissing
}

func parseProxy1(b []byte) (h ProxyHeader, need int, r Reason) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) == maxProxy1 {
			return h, 0, ProxyMalformed
		}
		return h, 0, incomplete
	}
	line, ok := strings.CutSuffix(string(b[:end]), "\r")
	h = ProxyHeader{Len: end + 1, Version: 1}
	part := strings.Split(line, " ")
	switch {
	case !ok || end < len(proxy1Start):
		return ProxyHeader{}, 0, ProxyMalformed
	case part[1] == "UNKNOWN": // the rest is to be ignored
		return h, 0, accepted
	case len(part) != 6 || part[1] != "TCP4" && part[1] != "TCP6":
		return ProxyHeader{}, 0, ProxyMalformed
	}
	var okS, okD bool
	h.Source, okS = proxyAddress(part[2], part[4], part[1] == "TCP4")
	h.Destination, okD = proxyAddress(part[3], part[5], part[1] == "TCP4")
	if !okS || !okD {
		return ProxyHeader{}, 0, ProxyMalformed
	}
	return h, 0, accepted
}

func proxyAddress(address, port string, v4 bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(address)
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || port[0] == '0' && port != "0" {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, uint16(n)), true
}

// parseProxy2 reads the binary header (PROXY protocol, 2.2). TLVs behind the addresses are passed over.
func parseProxy2(b []byte) (h ProxyHeader, need int, r Reason) {
	const (
		local, proxy  = 0x20, 0x21 // version and command
		unspecified   = 0x0
		inet4, inet6  = 0x1, 0x2
		unix          = 0x3
		lastTransport = 0x2 // unspecified, stream, datagram
	)
	if len(b) < proxy2Header {
		return h, proxy2Header, incomplete
	}
	command, family := b[12], b[13]>>4
	if command != local && command != proxy || family > unix || b[13]&0xf > lastTransport {
		return h, 0, ProxyMalformed
	}
	length := proxy2Header + int(b[14])<<8 + int(b[15])
	if len(b) < length {
		return h, length, incomplete
	}
	h = ProxyHeader{Len: length, Version: 2, Local: command == local}
	if h.Local {
		return h, length, accepted // what follows is to be ignored
	}
	content := reader{rest: b[proxy2Header:length]}
	switch family {
	case unspecified:
		return h, length, accepted
	case inet4:
		h.Source, h.Destination = content.endpoints(4)
	case inet6:
		h.Source, h.Destination = content.endpoints(16)
	case unix:
		content.take(2 * 108)
	}
	for len(content.rest) > 0 {
		content.uint8() // type
		content.vector16()
	}
	if content.short {
		return ProxyHeader{}, 0, ProxyMalformed
	}
	return h, length, accepted
}

// endpoints reads two addresses of size bytes, then their ports.
func (r *reader) endpoints(size int) (source, destination netip.AddrPort) {
	s, _ := netip.AddrFromSlice(r.take(size))
	d, _ := netip.AddrFromSlice(r.take(size))
	return netip.AddrPortFrom(s, r.uint16()), netip.AddrPortFrom(d, r.uint16())
}
