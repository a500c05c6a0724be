// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"net/netip"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// segmentParser reads the headers of captured frames. It reuses its layers: one goroutine at a time.
type segmentParser struct {
	eth    layers.Ethernet
	tag    layers.Dot1Q
	ip4    layers.IPv4
	ip6    layers.IPv6
	tcp    layers.TCP
	data   gopacket.Payload
	parser *gopacket.DecodingLayerParser
	found  []gopacket.LayerType
}

func newSegmentParser() *segmentParser {
	p := &segmentParser{}
	p.parser = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet, &p.eth, &p.tag, &p.ip4, &p.ip6, &p.tcp, &p.data)
	p.parser.IgnoreUnsupported = true
	return p
}

// parse returns the TCP segment in an Ethernet frame, which may be cut off anywhere after the TCP header; false if there is none that can be read. Time
// and Sent are the caller's to fill in.
func (p *segmentParser) parse(frame []byte) (Segment, bool) {
	if err := p.parser.DecodeLayers(frame, &p.found); err != nil {
		return Segment{}, false
	}
	var (
		src, dst netip.Addr
		payload  int
		isTCP    bool
	)
	for _, l := range p.found {
		switch l {
		case layers.LayerTypeIPv4:
			src, _ = netip.AddrFromSlice(p.ip4.SrcIP)
			dst, _ = netip.AddrFromSlice(p.ip4.DstIP)
			payload = int(p.ip4.Length) - 4*int(p.ip4.IHL)
		case layers.LayerTypeIPv6:
			src, _ = netip.AddrFromSlice(p.ip6.SrcIP)
			dst, _ = netip.AddrFromSlice(p.ip6.DstIP)
			payload = int(p.ip6.Length)
		case layers.LayerTypeTCP:
			isTCP = true
			payload -= 4 * int(p.tcp.DataOffset)
		}
	}
	if !isTCP || payload < 0 {
		return Segment{}, false
	}
	return Segment{
		Src: netip.AddrPortFrom(src, uint16(p.tcp.SrcPort)), Dst: netip.AddrPortFrom(dst, uint16(p.tcp.DstPort)),
		Seq: p.tcp.Seq, Ack: p.tcp.Ack, Window: p.tcp.Window, Len: payload,
		SYN: p.tcp.SYN, FIN: p.tcp.FIN, RST: p.tcp.RST, ACK: p.tcp.ACK,
	}, true
}
