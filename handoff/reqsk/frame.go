// SPDX-License-Identifier: Apache-2.0

package reqsk

import "encoding/binary"

const (
	offloadHeader = 10 // struct virtio_net_hdr
	ipv4Header    = 20
	ipv6Header    = 40
	tcpHeader     = 20
	timestamps    = 12 // the option, with two NOPs
	maxPacket     = 1<<16 - 1
	maxFrame      = offloadHeader + maxPacket
)

// hops is the TTL of what is injected: nothing may ever leave this host. (The kernel does not forward what a program has given a socket
// to, but segments that follow the first have none, and an address may vanish.)
const hops = 1

// TCP flags.
const (
	flagFIN = 1
	flagRST = 4
	flagPSH = 8
	flagACK = 16
)

// Values of struct virtio_net_hdr.
const (
	needsChecksum = 1
	gsoTCP4       = 1
	gsoTCP6       = 4
)

const protocolTCP = 6

// segment is one TCP segment of a stream. It may be larger than any that a network carries.
type segment struct {
	seq, ack uint32
	flags    uint8
	payload  []byte
}

func (t *stream) ipv6() bool { return t.flow.Local.Addr().Is6() }

// headers are the lengths of the IP and the TCP header.
func (t *stream) headers() (ip, tcp int) {
	ip, tcp = ipv4Header, tcpHeader
	if t.ipv6() {
		ip = ipv6Header
	}
	if t.options.Timestamps {
		tcp += timestamps
	}
	return ip, tcp
}

// maxPayload is the most that one segment can carry.
func (t *stream) maxPayload() int {
	ip, tcp := t.headers()
	return maxPacket - ip - tcp
}

// appendFrame appends a segment of the stream as a tun device with offload headers takes it. A large one is declared to be several that
// the interface has merged (GRO), since the kernel learns from that how large real ones are. The TCP checksum is declared to be
// left to the hardware: nobody computes or verifies it.
func (t *stream) appendFrame(b []byte, g segment) []byte {
	ip, tcp := t.headers()
	b = t.appendOffload(b, ip, tcp, len(g.payload))
	if t.ipv6() {
		b = t.appendIPv6(b, tcp+len(g.payload))
	} else {
		b = t.appendIPv4(b, ip+tcp+len(g.payload))
	}
	b = t.appendTCP(b, g, tcp)
	return append(b, g.payload...)
}

func (t *stream) appendOffload(b []byte, ip, tcp, payload int) []byte {
	// The size is that of the client's largest segments, as far as is known.
	size := int(t.options.MSS) - (tcp - tcpHeader)
	kind := 0
	switch {
	case payload <= size:
		size = 0
	case t.ipv6():
		kind = gsoTCP6
	default:
		kind = gsoTCP4
	}
	b = append(b, needsChecksum, byte(kind))
	for _, v := range [...]int{ip + tcp, size, ip, 16} { // header, segment, start and place of the checksum
		b = binary.LittleEndian.AppendUint16(b, uint16(v))
	}
	return b
}

func (t *stream) appendIPv4(b []byte, length int) []byte {
	from := len(b)
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0, 0x40, 0, hops, protocolTCP, 0, 0) // do not fragment
	b = append(b, t.flow.Remote.Addr().AsSlice()...)
	b = append(b, t.flow.Local.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[from+10:], ^fold(sum(0, b[from:])))
	return b
}

func (t *stream) appendIPv6(b []byte, payload int) []byte {
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(payload))
	b = append(b, protocolTCP, hops)
	b = append(b, t.flow.Remote.Addr().AsSlice()...)
	return append(b, t.flow.Local.Addr().AsSlice()...)
}

// appendTCP appends the TCP header, with the checksum of the pseudo header as offloading wants it.
func (t *stream) appendTCP(b []byte, g segment, header int) []byte {
	b = binary.BigEndian.AppendUint16(b, t.flow.Remote.Port())
	b = binary.BigEndian.AppendUint16(b, t.flow.Local.Port())
	b = binary.BigEndian.AppendUint32(b, g.seq)
	b = binary.BigEndian.AppendUint32(b, g.ack)
	b = append(b, byte(header/4<<4), g.flags)
	b = binary.BigEndian.AppendUint16(b, t.window)
	pseudo := sum(0, t.flow.Remote.Addr().AsSlice())
	pseudo = sum(pseudo, t.flow.Local.Addr().AsSlice())
	pseudo += protocolTCP + uint32(header+len(g.payload))
	b = binary.BigEndian.AppendUint16(b, fold(pseudo))
	b = append(b, 0, 0)
	if t.options.Timestamps {
		// The client's clock is unknown: 0 lets the kernel take whatever comes next (RFC 7323, 5.3, as Linux reads it).
		b = append(b, 1, 1, 8, 10, 0, 0, 0, 0)
		b = binary.BigEndian.AppendUint32(b, t.echo)
	}
	return b
}

// sum adds b, of even length, to an Internet checksum (RFC 1071).
func sum(s uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 1<<16-1 {
		s = s>>16 + s&(1<<16-1)
	}
	return uint16(s)
}
