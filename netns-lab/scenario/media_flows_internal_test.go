// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestMediaTally(t *testing.T) {
	flow := func(client, server uint16, protocol uint8) mediaFlow {
		return mediaFlow{
			netip.AddrPortFrom(netip.MustParseAddr("10.78.0.1"), client), netip.AddrPortFrom(netip.MustParseAddr("10.77.0.100"), server), protocol,
		}
	}
	rtp, echo := flow(40000, rtpPorts+portsEach, unix.IPPROTO_UDP), flow(30000, sipPorts, unix.IPPROTO_UDP)
	active, passive := flow(50000, 20, unix.IPPROTO_TCP), flow(50002, ftpPorts+portsEach+3, unix.IPPROTO_TCP)
	type seen = map[mediaFlow]sighting
	for _, tt := range []struct {
		name    string
		traffic MediaTraffic
		want    MediaTally
	}{
		{"all arrives", MediaTraffic{
			client:  seen{rtp: {toServer: 10}, echo: {toServer: 5, toClient: 5}, active: {toServer: 3, toClient: 3}, passive: {toServer: 4}},
			servers: []seen{{echo: {toServer: 5, toClient: 5}, active: {toServer: 3, toClient: 3, opened: true}}, {rtp: {toServer: 10}, passive: {toServer: 4}}},
		}, MediaTally{Announced: 4, Packets: 20, PerServer: []int{2, 2}}},
		{"lost on both ways", MediaTraffic{
			client:  seen{echo: {toServer: 5, toClient: 2}},
			servers: []seen{{echo: {toServer: 4, toClient: 4}}, {}},
		}, MediaTally{Announced: 1, Packets: 9, Lost: 3, PerServer: []int{1, 0}}},
		{"one packet at the wrong server", MediaTraffic{
			client:  seen{rtp: {toServer: 10}},
			servers: []seen{{rtp: {toServer: 1}}, {rtp: {toServer: 9}}},
		}, MediaTally{Announced: 1, Misrouted: 1, Packets: 10, Lost: 1, PerServer: []int{0, 0}}},
		{"an active connection's answer at the wrong server", MediaTraffic{
			client:  seen{active: {toServer: 1, toClient: 1}},
			servers: []seen{{active: {toClient: 1, opened: true}}, {active: {toServer: 1}}},
		}, MediaTally{Announced: 1, Misrouted: 1, PerServer: []int{0, 0}}},
		{"nobody's port", MediaTraffic{
			client:  seen{flow(1, 9, unix.IPPROTO_UDP): {toServer: 1}},
			servers: []seen{{}, {}},
		}, MediaTally{Announced: 1, Misrouted: 1, Packets: 1, Lost: 1, PerServer: []int{0, 0}}},
		{"questions", MediaTraffic{
			client: seen{flow(20000, DNSPort, unix.IPPROTO_UDP): {toServer: 4, toClient: 4}, flow(20001, DNSPort, unix.IPPROTO_UDP): {toServer: 4, toClient: 3}},
			servers: []seen{{flow(20000, DNSPort, unix.IPPROTO_UDP): {toServer: 1, toClient: 1}}, {
				flow(20000, DNSPort, unix.IPPROTO_UDP): {toServer: 3, toClient: 3}, flow(20001, DNSPort, unix.IPPROTO_UDP): {toServer: 4, toClient: 4},
			}},
		}, MediaTally{Queried: 2, Misrouted: 1, Packets: 16, Lost: 2, PerServer: []int{0, 0}}},
		{"the server only sends, and nothing arrives", MediaTraffic{
			client:  seen{},
			servers: []seen{{}, {rtp: {toClient: 7}}},
		}, MediaTally{Packets: 7, Lost: 7, PerServer: []int{0, 0}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, tt.traffic.Tally()); diff != "" {
				t.Errorf("tally (-want +got):\n%s", diff)
			}
		})
	}
}
