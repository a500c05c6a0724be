// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// packet is a diverted frame, read. Its slices are the frame's.
type packet struct {
	flow    session.Key
	payload []byte
	// tcp is nil for a datagram. It is the reader's and valid until its next frame.
	tcp *layers.TCP
}

// end returns the sequence number after a TCP segment's payload.
func (p packet) end() uint32 {
	n := uint32(len(p.payload))
	if p.tcp.SYN {
		n++
	}
	return p.tcp.Seq + n
}

// frameReader reads frames. It reuses its layers: one goroutine at a time.
type frameReader struct {
	eth    layers.Ethernet
	ip4    layers.IPv4
	ip6    layers.IPv6
	tcp    layers.TCP
	udp    layers.UDP
	data   gopacket.Payload
	parser *gopacket.DecodingLayerParser
	found  []gopacket.LayerType
}

func newFrameReader() *frameReader {
	r := &frameReader{}
	r.parser = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &r.eth, &r.ip4, &r.ip6, &r.tcp, &r.udp, &r.data)
	r.parser.IgnoreUnsupported = true
	return r
}

// read reads a frame that a server has sent to a client; false if it is no whole TCP segment or UDP datagram.
func (r *frameReader) read(frame []byte) (packet, bool) {
	if err := r.parser.DecodeLayers(frame, &r.found); err != nil {
		return packet{}, false
	}
	var p packet
	var server, client netip.Addr
	for _, layer := range r.found {
		switch layer {
		case layers.LayerTypeIPv4:
			if r.ip4.FragOffset != 0 || r.ip4.Flags&layers.IPv4MoreFragments != 0 {
				return packet{}, false
			}
			server, _ = netip.AddrFromSlice(r.ip4.SrcIP)
			client, _ = netip.AddrFromSlice(r.ip4.DstIP)
		case layers.LayerTypeIPv6:
			server, _ = netip.AddrFromSlice(r.ip6.SrcIP)
			client, _ = netip.AddrFromSlice(r.ip6.DstIP)
		case layers.LayerTypeTCP:
			p.flow = session.Key{
				Client: netip.AddrPortFrom(client, uint16(r.tcp.DstPort)), Server: netip.AddrPortFrom(server, uint16(r.tcp.SrcPort)),
				Protocol: protocolTCP,
			}
			p.tcp, p.payload = &r.tcp, r.tcp.Payload
		case layers.LayerTypeUDP:
			p.flow = session.Key{
				Client: netip.AddrPortFrom(client, uint16(r.udp.DstPort)), Server: netip.AddrPortFrom(server, uint16(r.udp.SrcPort)),
				Protocol: protocolUDP,
			}
			p.payload = r.udp.Payload
		}
	}
	return p, server.IsValid() && p.flow.Protocol != 0
}
