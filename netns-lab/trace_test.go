// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"net/netip"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestTraceCounts(t *testing.T) {
	client, other := netip.MustParseAddrPort("10.77.0.1:40000"), netip.MustParseAddrPort("10.77.0.1:40001")
	server := netip.MustParseAddrPort("10.77.0.100:80")
	begin := time.Unix(1000, 0)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	trace := netnslab.Trace{Missed: 3, Segments: []netnslab.Segment{
		{Time: at(0), Src: client, Dst: server, Seq: 10, SYN: true},
		{Time: at(1), Src: client, Dst: server, Seq: 10, SYN: true}, // sent again
		{Time: at(2), Src: server, Dst: client, Seq: 500, Ack: 11, SYN: true, ACK: true},
		{Time: at(3), Src: client, Dst: server, Seq: 11, Ack: 501, ACK: true, Len: 100},
		{Time: at(4), Src: server, Dst: client, Seq: 501, Ack: 111, ACK: true, Len: 1000},
		{Time: at(5), Src: server, Dst: client, Seq: 2501, ACK: true, Len: 1000}, // overtook
		{Time: at(6), Src: server, Dst: client, Seq: 1501, ACK: true, Len: 1000}, // late, fills the hole
		{Time: at(7), Src: other, Dst: server, Seq: 90, SYN: true},
		{Time: at(8), Src: server, Dst: other, Seq: 0, ACK: true, RST: true},
		{Time: at(56), Src: server, Dst: client, Seq: 3401, ACK: true, Len: 1000}, // 100 bytes again
		{Time: at(57), Src: client, Dst: server, Seq: 110, ACK: true},             // a keepalive: carries nothing
		{Time: at(58), Src: server, Dst: client, Seq: 4401, ACK: true, FIN: true},
		{Time: at(59), Src: server, Dst: client, Seq: 4401, ACK: true, FIN: true}, // sent again
		{Time: at(60), Src: client, Dst: server, Seq: 900, SYN: true},             // the port is used again
	}}
	flow := trace.Flow(tcprepair.NewFlow(server, client))
	for _, test := range []struct {
		name      string
		got, want int
	}{
		{"resets", trace.Resets(), 1},
		{"resets of the flow", flow.Resets(), 0},
		{"connections", trace.Connections(), 3},
		{"connections of the flow", flow.Connections(), 2},
		{"segments of the flow", len(flow.Segments), 12},
		{"from the server", len(flow.From(server).Segments), 7},
		{"with payload", len(flow.From(server).Payload().Segments), 4},
		{"missed", flow.From(server).Payload().Missed, 3},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d, want %d", test.name, test.got, test.want)
		}
	}
	packets, octets := trace.Retransmitted()
	if packets != 3 || octets != 1+100+1 {
		t.Errorf("retransmitted %d packets, %d numbers, want 3 and 102", packets, octets)
	}
	gap := flow.From(server).LongestGap()
	if gap.Length != 50*time.Millisecond || !gap.Start.Equal(at(6)) {
		t.Errorf("longest gap %v from %v", gap.Length, gap.Start)
	}
	if g := (netnslab.Trace{}).LongestGap(); g.Length != 0 {
		t.Errorf("gap of nothing: %v", g)
	}
}
