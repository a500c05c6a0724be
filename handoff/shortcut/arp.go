// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
)

const (
	etherARP = 0x0806
	// frameSize is the least that Ethernet allows, without its checksum; an ARP packet needs 42 bytes of it.
	frameSize = 60
	arpSize   = 42
)

// Question is an ARP request for ip from the MAC address src and the IP address 0.0.0.0 (RFC 5227, 2.1.1): for that, neighbours store nothing.
func Question(src net.HardwareAddr, ip netip.Addr) []byte {
	b := make([]byte, 0, frameSize)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, src...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1)
	b = append(b, src...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, ip.AsSlice()...)
	return b[:frameSize]
}

// answerOf returns who answers a Question of src in a frame; the zero Addr if the frame is something else.
func answerOf(src net.HardwareAddr, frame []byte) netip.Addr {
	if len(frame) < arpSize || !bytes.Equal(frame[:6], src) || binary.BigEndian.Uint16(frame[12:]) != etherARP {
		return netip.Addr{}
	}
	arp := frame[14:]
	reply := []byte{0, 1, 0x08, 0x00, 6, 4, 0, 2}
	if !bytes.Equal(arp[:8], reply) || !bytes.Equal(arp[18:24], src) || !bytes.Equal(arp[24:28], []byte{0, 0, 0, 0}) {
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(arp[14:18]))
}
