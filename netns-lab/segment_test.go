// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// frameOf builds a packet of the given layers over Ethernet.
func frameOf(t testing.TB, kind layers.EthernetType, rest ...gopacket.SerializableLayer) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, EthernetType: kind}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true},
		append([]gopacket.SerializableLayer{eth}, rest...)...)
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestSegmentParser(t *testing.T) {
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 77, 0, 1}, DstIP: net.IP{10, 77, 0, 100}}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: net.ParseIP("fd77::1"), DstIP: net.ParseIP("fd77::100")}
	tcp := &layers.TCP{
		SrcPort: 40000, DstPort: 80, Seq: 1 << 31, Ack: 7, ACK: true, FIN: true, Window: 512,
		Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindNop}, {OptionType: layers.TCPOptionKindNop}},
	}
	payload := gopacket.Payload(make([]byte, 1000))
	want := Segment{
		Src: netip.MustParseAddrPort("10.77.0.1:40000"), Dst: netip.MustParseAddrPort("10.77.0.100:80"),
		Seq: 1 << 31, Ack: 7, Window: 512, Len: 1000, FIN: true, ACK: true,
	}
	want6 := want
	want6.Src, want6.Dst = netip.MustParseAddrPort("[fd77::1]:40000"), netip.MustParseAddrPort("[fd77::100]:80")
	bare := want
	bare.Len = 0
	for _, test := range []struct {
		name  string
		frame []byte
		want  Segment
		ok    bool
	}{
		{"IPv4", frameOf(t, layers.EthernetTypeIPv4, ip4, tcp, payload), want, true},
		{"IPv6", frameOf(t, layers.EthernetTypeIPv6, ip6, tcp, payload), want6, true},
		{"cut off", frameOf(t, layers.EthernetTypeIPv4, ip4, tcp, payload)[:100], want, true},
		// An Ethernet frame is padded to 60 bytes: the padding is not payload.
		{"padded", append(frameOf(t, layers.EthernetTypeIPv4, ip4, tcp), make([]byte, 6)...), bare, true},
		{"tagged", frameOf(t, layers.EthernetTypeDot1Q, &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}, ip4, tcp, payload), want, true},
		{"cut off in TCP", frameOf(t, layers.EthernetTypeIPv4, ip4, tcp, payload)[:40], Segment{}, false},
		{"ARP", frameOf(t, layers.EthernetTypeARP, payload), Segment{}, false},
		{"empty", nil, Segment{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, ok := newSegmentParser().parse(test.frame)
			if ok != test.ok {
				t.Fatalf("ok %t, want %t", ok, test.ok)
			}
			if d := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
				t.Errorf("segment (-want +got):\n%s", d)
			}
		})
	}
}

func FuzzSegmentParser(f *testing.F) {
	ip4 := &layers.IPv4{Version: 4, Protocol: layers.IPProtocolTCP, SrcIP: net.IP{10, 77, 0, 1}, DstIP: net.IP{10, 77, 0, 100}}
	f.Add(frameOf(f, layers.EthernetTypeIPv4, ip4, &layers.TCP{SrcPort: 1, DstPort: 2}, gopacket.Payload("x")))
	p := newSegmentParser()
	f.Fuzz(func(t *testing.T, frame []byte) {
		if s, ok := p.parse(frame); ok && (s.Len < 0 || s.Len > 1<<16 || !s.Src.Addr().IsValid()) {
			t.Errorf("impossible segment %+v", s)
		}
	})
}
