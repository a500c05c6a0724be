// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"encoding/binary"
	"net"

	"github.com/rehome-net/rehome/tcprepair"
)

// TCP flags.
const (
	fin = 1
	syn = 2
	rst = 4
	ack = 16
)

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
)

func ethernet(dst net.HardwareAddr, etherType uint16, payload []byte) []byte {
	b := append(append([]byte{}, dst...), 6, 0, 0, 0, 0, 0x99) // not 2, see newStand
	return append(binary.BigEndian.AppendUint16(b, etherType), payload...)
}

// segment is the transport header of a client's packet.
func segment(f tcprepair.Flow, flags byte, payload int) []byte {
	b := binary.BigEndian.AppendUint16(nil, f.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	return append(b, make([]byte, payload)...)
}

func datagram(f tcprepair.Flow, payload int) []byte {
	b := binary.BigEndian.AppendUint16(nil, f.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+payload))
	return append(b, make([]byte, 2+payload)...)
}

func ip4(f tcprepair.Flow, proto byte, options []byte, fragment uint16, payload []byte) []byte {
	b := []byte{0x45 + byte(len(options)/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(options)+len(payload)))
	b = binary.BigEndian.AppendUint16(append(b, 0, 1), fragment)
	b = append(b, 64, proto, 0, 0)
	b = append(append(b, f.Remote.Addr().AsSlice()...), f.Local.Addr().AsSlice()...)
	return append(append(b, options...), payload...)
}

type extension struct {
	proto byte
	rest  []byte // after the next-header byte
}

func ip6(f tcprepair.Flow, proto byte, payload []byte, ext ...extension) []byte {
	var rest []byte
	next := proto
	for i := len(ext) - 1; i >= 0; i-- {
		rest = append(append([]byte{next}, ext[i].rest...), rest...)
		next = ext[i].proto
	}
	rest = append(rest, payload...)
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(rest)))
	b = append(b, next, 64)
	b = append(append(b, f.Remote.Addr().AsSlice()...), f.Local.Addr().AsSlice()...)
	return append(b, rest...)
}

// packetOf is a whole frame of a client.
func packetOf(mac net.HardwareAddr, f tcprepair.Flow, proto, flags byte, payload int) []byte {
	t := segment(f, flags, payload)
	if proto == protoUDP {
		t = datagram(f, payload)
	}
	if f.Local.Addr().Is4() {
		return ethernet(mac, etherIPv4, ip4(f, proto, nil, 0, t))
	}
	return ethernet(mac, etherIPv6, ip6(f, proto, t))
}
