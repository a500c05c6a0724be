// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestSegment has an independent decoder read hand-made segments, and computes their checksums.
func TestSegment(t *testing.T) {
	for _, c := range []struct {
		from, to string
		first    gopacket.LayerType
	}{
		{"192.0.2.7:40312", "198.51.100.1:443", layers.LayerTypeIPv4},
		{"[2001:db8::7]:40312", "[2001:db8::1]:443", layers.LayerTypeIPv6},
	} {
		g := segment{
			from: netip.MustParseAddrPort(c.from), to: netip.MustParseAddrPort(c.to),
			seq: 1<<32 - 1, ack: 7, flags: tcpFIN | tcpACK, window: 513,
		}
		b := g.packet()
		p := gopacket.NewPacket(b, c.first, gopacket.DecodeOptions{})
		tcp, ok := p.TransportLayer().(*layers.TCP)
		if p.ErrorLayer() != nil || !ok {
			t.Fatalf("%x: %v", b, p.ErrorLayer())
		}
		if tcp.Seq != g.seq || tcp.Ack != g.ack || !tcp.FIN || !tcp.ACK || tcp.SYN || tcp.RST || tcp.Window != g.window ||
			tcp.SrcPort != 40312 || tcp.DstPort != 443 || len(tcp.Options) != 0 || len(tcp.Payload) != 0 {
			t.Errorf("%+v became %+v", g, tcp)
		}
		if err := tcp.SetNetworkLayerForChecksum(p.NetworkLayer()); err != nil {
			t.Fatal(err)
		}
		again := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(again, gopacket.SerializeOptions{ComputeChecksums: true},
			p.NetworkLayer().(gopacket.SerializableLayer), tcp); err != nil {
			t.Fatal(err)
		}
		if string(again.Bytes()) != string(b) {
			t.Errorf("got  %x\nwant %x", b, again.Bytes())
		}
	}
}
