// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"net/netip"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestWaits(t *testing.T) {
	server, client := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:1000")
	f := tcprepair.NewFlow(server, client)
	origin := time.Unix(1000, 0)
	at := func(ms int) time.Time { return origin.Add(time.Duration(ms) * time.Millisecond) }
	trace := netnslab.Trace{Segments: []netnslab.Segment{
		{Time: at(0), Src: client, Dst: server, Len: 10},
		{Time: at(3), Src: server, Dst: client, Len: 10},
		{Time: at(5), Src: server, Dst: client},
		{Time: at(9), Src: server, Dst: client, Len: 10},
		{Time: at(20), Src: client, Dst: server, Len: 10},
		{Time: at(21), Src: server, Dst: client, Len: 10},
	}}
	for _, tt := range []struct {
		client     string
		begin, end int
		want       time.Duration // in milliseconds
	}{
		{"download", 0, 100, 12},
		{"download", 0, 4, 6},
		{"upload", 0, 6, 4},
		{"upload", 0, 100, 12},
		{"echo", 0, 100, 3},
		{"echo", 10, 100, 1},
		{"echo", 4, 10, 0},
	} {
		got := longestWait(waitsOf(tt.client, trace, f), at(tt.begin), at(tt.end))
		if got != tt.want*time.Millisecond {
			t.Errorf("%s from %d to %d ms: %v, want %d ms", tt.client, tt.begin, tt.end, got, tt.want)
		}
	}
}

func TestSNMPCounter(t *testing.T) {
	const text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin RetransSegs InErrs\nTcp: 200 42 7\n"
	if n, err := snmpCounter(text, "Tcp", "RetransSegs"); n != 42 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, err := snmpCounter(text, "Udp", "InErrors"); err == nil {
		t.Error("found what is not there")
	}
}
