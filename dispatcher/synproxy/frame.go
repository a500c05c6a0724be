// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"encoding/binary"
	"net/netip"
)

const (
	ethernetSize = 14
	// vnetSize is that of struct virtio_net_hdr (virtio 1.2, 5.1.6), which the kernel wants before a frame, to learn what is left to do.
	vnetSize = 10
)

// Values in a virtio_net_hdr.
const (
	vnetNeedsChecksum = 1
	vnetTCP4          = 1
	vnetTCP6          = 4
)

// putVnet says that the TCP checksum is to be filled in, and how the segment is to be cut if it is one of several.
func putVnet(frame []byte, at, header int, gso uint16, payload int, v4 bool) {
	h := frame[:vnetSize]
	clear(h)
	h[0] = vnetNeedsChecksum
	if gso > 0 && payload > int(gso) {
		h[1] = vnetTCP6
		if v4 {
			h[1] = vnetTCP4
		}
		binary.NativeEndian.PutUint16(h[2:], uint16(at+header))
		binary.NativeEndian.PutUint16(h[4:], gso)
	}
	binary.NativeEndian.PutUint16(h[6:], uint16(at))
	binary.NativeEndian.PutUint16(h[8:], tcpChecksum)
}

// sum adds up 16-bit words, the last one filled up with zero (RFC 1071).
func sum(b []byte) uint64 {
	var s, carry uint64
	for ; len(b) >= 8; b = b[8:] {
		v := binary.BigEndian.Uint64(b)
		s += v >> 32
		carry += v & 0xffffffff
	}
	s += carry
	for ; len(b) >= 2; b = b[2:] {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint64(b[0]) << 8
	}
	return s
}

func pseudoSum(from, to netip.Addr, length int) uint64 {
	const tcp = 6
	return sum(from.AsSlice()) + sum(to.AsSlice()) + tcp + uint64(length)
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// reply is a segment of ours to a client.
type reply struct {
	seq, ack     uint32
	flags        uint8
	tsval, tsecr uint32
	payload      []byte
}

// appendReply appends the frame of an answer to a packet: from where that went, to where it came from.
func appendReply(b []byte, to *packet, r reply) []byte {
	start := len(b)
	b = append(b, make([]byte, vnetSize)...)
	b = append(append(append(b, to.ethernet[6:12]...), to.ethernet[:6]...), to.ethernet[12:]...)
	header := 20
	if to.timestamps {
		header += 12
	}
	length := header + len(r.payload)
	local, remote := to.flow.Local, to.flow.Remote
	if local.Addr().Is4() {
		ip := len(b)
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(20+length))
		b = append(b, 0, 0, 0x40, 0, 64, 6, 0, 0)
		b = append(append(b, local.Addr().AsSlice()...), remote.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(b[ip+10:], ^fold(sum(b[ip:])))
	} else {
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(length))
		b = append(b, 6, 64)
		b = append(append(b, local.Addr().AsSlice()...), remote.Addr().AsSlice()...)
	}
	tcp := len(b)
	b = binary.BigEndian.AppendUint16(b, local.Port())
	b = binary.BigEndian.AppendUint16(b, remote.Port())
	b = binary.BigEndian.AppendUint32(b, r.seq)
	b = binary.BigEndian.AppendUint32(b, r.ack)
	b = append(b, byte(header/4)<<4, r.flags)
	b = binary.BigEndian.AppendUint16(b, 0xffff)
	b = binary.BigEndian.AppendUint16(b, fold(pseudoSum(local.Addr(), remote.Addr(), length)))
	b = append(b, 0, 0)
	if to.timestamps {
		b = append(b, 1, 1, 8, 10)
		b = binary.BigEndian.AppendUint32(b, r.tsval)
		b = binary.BigEndian.AppendUint32(b, r.tsecr)
	}
	b = append(b, r.payload...)
	putVnet(b[start:], tcp-start-vnetSize, header, 0, len(r.payload), local.Addr().Is4())
	return b
}
