// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"net"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func TestIsNeighbour(t *testing.T) {
	icmp := func(kind uint8) []byte {
		return frameOf(t, layers.EthernetTypeIPv6,
			&layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP("fd77::1"), DstIP: net.ParseIP("fd77::2")},
			&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, gopacket.Payload(make([]byte, 20)))
	}
	solicitation := icmp(layers.ICMPv6TypeNeighborSolicitation)
	for _, test := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"ARP", frameOf(t, layers.EthernetTypeARP, gopacket.Payload(make([]byte, 28))), true},
		{"solicitation", solicitation, true},
		{"advertisement", icmp(layers.ICMPv6TypeNeighborAdvertisement), true},
		{"echo", icmp(layers.ICMPv6TypeEchoRequest), false},
		{"cut off before the type", solicitation[:54], false},
		{"IPv4", frameOf(t, layers.EthernetTypeIPv4, gopacket.Payload(make([]byte, 60))), false},
		{"runt", make([]byte, 13), false},
		{"empty", nil, false},
	} {
		if got := isNeighbour(test.frame); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
}

func FuzzIsNeighbour(f *testing.F) {
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, frame []byte) {
		if isNeighbour(frame) && len(frame) < 14 {
			t.Error("recognised a runt")
		}
	})
}
