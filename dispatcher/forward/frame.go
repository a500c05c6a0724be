// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"encoding/binary"
	"net/netip"

	"github.com/rehome-net/rehome/tcprepair"
)

// Protocol numbers.
const (
	protoHopByHop    = 0
	protoTCP         = 6
	protoUDP         = 17
	protoRouting     = 43
	protoFragment    = 44
	protoDestination = 60
)

const (
	etherTypeIPv4  = 0x0800
	etherTypeIPv6  = 0x86dd
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20
	udpHeader      = 8
	maxExtensions  = 4
)

// parseFrame finds the flow of a frame that the kernel has diverted, its segment or datagram, and how long the header of that is, by the
// rules of bpf/packet.h. What is not so is not ok; it does not occur.
func parseFrame(b []byte) (f tcprepair.Flow, protocol uint8, segment []byte, header int, ok bool) {
	if len(b) < ethernetHeader {
		return f, 0, nil, 0, false
	}
	var src, dst netip.Addr
	ip := b[ethernetHeader:]
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherTypeIPv4:
		src, dst, protocol, segment = parse4(ip)
	case etherTypeIPv6:
		src, dst, protocol, segment = parse6(ip)
	}
	header = udpHeader
	switch {
	case protocol == protoUDP && len(segment) >= udpHeader:
		length := int(binary.BigEndian.Uint16(segment[4:]))
		if length < udpHeader || length > len(segment) {
			return f, 0, nil, 0, false
		}
		segment = segment[:length]
	case protocol == protoTCP && len(segment) >= tcpHeader:
		if header = int(segment[12]>>4) * 4; header < tcpHeader || header > len(segment) {
			return f, 0, nil, 0, false
		}
	default:
		return f, 0, nil, 0, false
	}
	f.Remote = netip.AddrPortFrom(src, binary.BigEndian.Uint16(segment))
	f.Local = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(segment[2:]))
	return f, protocol, segment, header, f.IsValid()
}

// parse4 returns the transport header and what follows; protocol 0 if there is none.
func parse4(ip []byte) (src, dst netip.Addr, protocol uint8, rest []byte) {
	if len(ip) < ipv4Header || ip[0]>>4 != 4 {
		return src, dst, 0, nil
	}
	header, length := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < ipv4Header || length < header || length > len(ip) || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return src, dst, 0, nil
	}
	return netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20])), ip[9], ip[header:length]
}

func parse6(ip []byte) (src, dst netip.Addr, protocol uint8, rest []byte) {
	if len(ip) < ipv6Header || ip[0]>>4 != 6 {
		return src, dst, 0, nil
	}
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length > len(ip)-ipv6Header {
		return src, dst, 0, nil
	}
	src, dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	protocol, rest = ip[6], ip[ipv6Header:ipv6Header+length]
	for range maxExtensions {
		if protocol == protoTCP || protocol == protoUDP || len(rest) < 8 {
			break
		}
		size := (int(rest[1]) + 1) * 8
		switch protocol {
		case protoHopByHop, protoDestination, protoRouting:
		case protoFragment:
			// An atomic fragment (RFC 6946) is a whole packet.
			if rest[2] != 0 || rest[3]&0xf9 != 0 {
				return src, dst, 0, nil
			}
			size = 8
		default:
			return src, dst, 0, nil
		}
		if size > len(rest) {
			return src, dst, 0, nil
		}
		protocol, rest = rest[0], rest[size:]
	}
	return src, dst, protocol, rest
}
