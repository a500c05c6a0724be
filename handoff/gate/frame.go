// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"encoding/binary"
	"net/netip"

	"github.com/rehome-net/rehome/tcprepair"
)

const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
	tcpHeader      = 20
	maxFrame       = 1 << 16 // the tap never gives more: it has no segmentation offload
	maxExtensions  = 4       // IPv6 extension headers walked, as in bpf/packet.h

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd

	protoHopByHop    = 0
	protoTCP         = 6
	protoRouting     = 43
	protoFragment    = 44
	protoDestination = 60
)

// Frames makes Ethernet frames of IP packets, for Replay, which fills in the addresses.
func Frames(packets [][]byte) [][]byte {
	frames := make([][]byte, 0, len(packets))
	for _, p := range packets {
		kind := uint16(etherIPv4)
		if len(p) > 0 && p[0]>>4 == 6 {
			kind = etherIPv6
		}
		f := make([]byte, ethernetHeader, ethernetHeader+len(p))
		binary.BigEndian.PutUint16(f[12:], kind)
		frames = append(frames, append(f, p...))
	}
	return frames
}

// FlowOf returns the flow that a client's Ethernet frame belongs to; false when a gate would let it pass.
func FlowOf(frame []byte) (tcprepair.Flow, bool) { return frameFlow(frame) }

// opens reports whether a frame of a flow asks for a new connection: a SYN, and nothing else.
func opens(frame []byte) bool {
	tcp := transport(frame)
	const fin, syn, rst, ack = 1, 2, 4, 16
	return tcp != nil && tcp[13]&(fin|syn|rst|ack) == syn
}

// transport returns the TCP header of a frame of a flow, and what follows.
func transport(frame []byte) []byte {
	ip := frame[ethernetHeader:]
	at := int(ip[0]&15) * 4
	if ip[0]>>4 == 6 {
		at = ipv6Header
		for next := ip[6]; next != protoTCP && len(ip) > at+8; {
			size := (int(ip[at+1]) + 1) * 8
			if next == protoFragment {
				size = 8
			}
			next, at = ip[at], at+size
		}
	}
	if len(ip) < at+tcpHeader {
		return nil
	}
	return ip[at:]
}

// frameFlow returns the flow a received Ethernet frame belongs to. It follows the rules of bpf/packet.h: a frame that is
// not ours there is not ours here.
func frameFlow(b []byte) (tcprepair.Flow, bool) {
	if len(b) < ethernetHeader+ipv4Header+tcpHeader {
		return tcprepair.Flow{}, false
	}
	switch ip := b[ethernetHeader:]; binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		return flow4(ip)
	case etherIPv6:
		return flow6(ip)
	}
	return tcprepair.Flow{}, false
}

func flow4(ip []byte) (tcprepair.Flow, bool) {
	header, length := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case ip[0]>>4 != 4, ip[9] != protoTCP, binary.BigEndian.Uint16(ip[6:])&0x3fff != 0,
		header < ipv4Header, length < header+tcpHeader, length > len(ip):
		return tcprepair.Flow{}, false
	}
	src, dst := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	return tcpFlow(ip[header:length], src, dst)
}

func flow6(ip []byte) (tcprepair.Flow, bool) {
	if len(ip) < ipv6Header+tcpHeader || ip[0]>>4 != 6 {
		return tcprepair.Flow{}, false
	}
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if length > len(ip)-ipv6Header {
		return tcprepair.Flow{}, false
	}
	next, rest := ip[6], ip[ipv6Header:ipv6Header+length]
	for range maxExtensions {
		if next == protoTCP || len(rest) < 8 {
			break
		}
		size := (int(rest[1]) + 1) * 8
		switch next {
		case protoHopByHop, protoDestination:
		case protoRouting:
			if rest[3] != 0 {
				return tcprepair.Flow{}, false
			}
		case protoFragment:
			// An atomic fragment (RFC 6946) is a whole packet.
			if rest[2] != 0 || rest[3]&0xf9 != 0 {
				return tcprepair.Flow{}, false
			}
			size = 8
		default:
			return tcprepair.Flow{}, false
		}
		if size > len(rest) {
			return tcprepair.Flow{}, false
		}
		next, rest = rest[0], rest[size:]
	}
	if next != protoTCP {
		return tcprepair.Flow{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	return tcpFlow(rest, src, dst)
}

// tcpFlow reads the ports of a TCP segment sent by the client src.
func tcpFlow(tcp []byte, src, dst netip.Addr) (tcprepair.Flow, bool) {
	if len(tcp) < tcpHeader {
		return tcprepair.Flow{}, false
	}
	if header := int(tcp[12]>>4) * 4; header < tcpHeader || header > len(tcp) {
		return tcprepair.Flow{}, false
	}
	f := tcprepair.NewFlow(
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(tcp[2:])),
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp[0:])))
	return f, f.IsValid()
}
