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

// segment is a TCP segment made by hand: how a state that no system call can restore is reached. It has no options: without
// timestamps it cannot upset those of the connection, and Linux takes it.
type segment struct {
	from, to netip.AddrPort
	seq, ack uint32
	flags    uint8
	// window is the field as sent, already scaled.
	window uint16
	data   []byte
}

// packet returns the segment as an IP packet.
func (g *segment) packet() []byte {
	const hopLimit, protocolTCP, tcpHeader = 64, 6, 20
	t := make([]byte, 0, tcpHeader+len(g.data))
	t = binary.BigEndian.AppendUint16(t, g.from.Port())
	t = binary.BigEndian.AppendUint16(t, g.to.Port())
	t = binary.BigEndian.AppendUint32(t, g.seq)
	t = binary.BigEndian.AppendUint32(t, g.ack)
	t = append(t, tcpHeader/4<<4, g.flags)
	t = binary.BigEndian.AppendUint16(t, g.window)
	t = append(t, 0, 0, 0, 0) // checksum, urgent pointer
	t = append(t, g.data...)
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
		binary.BigEndian.PutUint16(p[10:], ^fold(onesSum(0, p)))
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

// onesSum adds b to a one's complement sum of even length (RFC 1071).
func onesSum(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
