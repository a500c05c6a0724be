// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"net/netip"
)

// TCP flags of hand-made segments.
const (
	tcpFIN = 0x01
	tcpACK = 0x10
)

// segment is a TCP segment without data, made by hand: how a state that no system call can restore is reached.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    uint8
	// window is the field as sent, already scaled.
	window uint16
	// timestamp is sent in a timestamps option if hasTimestamp is set, without an echo.
	hasTimestamp bool
	timestamp    uint32
}

// packet returns the segment as an IP packet for a raw socket. The kernel fills the checksum of an IPv4 header.
func (g *segment) packet() []byte {
	const hopLimit, protocolTCP, tcpHeader, timestampsOption = 64, 6, 20, 12
	size := tcpHeader
	if g.hasTimestamp {
		size += timestampsOption
	}
	t := make([]byte, 0, tcpHeader+timestampsOption)
	t = binary.BigEndian.AppendUint16(t, g.from.Port())
	t = binary.BigEndian.AppendUint16(t, g.to.Port())
	t = binary.BigEndian.AppendUint32(t, g.seq)
	t = binary.BigEndian.AppendUint32(t, g.ack)
	t = append(t, byte(size/4)<<4, g.flags)
	t = binary.BigEndian.AppendUint16(t, g.window)
	t = append(t, 0, 0, 0, 0) // checksum, urgent pointer
	if g.hasTimestamp {
		t = append(t, 1, 1, optTimestampKind, 10) // two no-ops align the option
		t = binary.BigEndian.AppendUint32(t, g.timestamp)
		t = append(t, 0, 0, 0, 0)
	}
	from, to := g.from.Addr().AsSlice(), g.to.Addr().AsSlice()
	pseudo := uint32(protocolTCP + len(t))
	binary.BigEndian.PutUint16(t[16:], ^fold(onesSum(onesSum(onesSum(pseudo, from), to), t)))

	var p []byte
	if g.from.Addr().Is4() {
		p = make([]byte, 20, 20+len(t))
		p[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(t)))
		p[8], p[9] = hopLimit, protocolTCP
		copy(p[12:], from)
		copy(p[16:], to)
	} else {
		p = make([]byte, 40, 40+len(t))
		p[0] = 6 << 4
		binary.BigEndian.PutUint16(p[4:], uint16(len(t)))
		p[6], p[7] = protocolTCP, hopLimit
		copy(p[8:], from)
		copy(p[24:], to)
	}
	return append(p, t...)
}

// optTimestampKind is the kind of the timestamps option (RFC 7323, 3.2).
const optTimestampKind = 8

// onesSum adds b, of even length, to a one's complement sum (RFC 1071).
func onesSum(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
