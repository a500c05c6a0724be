// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// A lab with a slow client, a web server in it, and a capture of what the client sees.
func ExampleBuild() {
	ctx := context.Background()
	topo := netnslab.Standard(2)
	topo.Impairments = []netnslab.HostImpairment{{
		Host: "client",
		Up:   netnslab.RTT(20 * time.Millisecond),
		Down: netnslab.Impairment{Delay: 10 * time.Millisecond, Loss: 0.01, Seed: 1},
	}}
	lab, err := netnslab.Build(ctx, topo)
	if err != nil {
		log.Fatal(err)
	}
	defer lab.Close()
	client, err := lab.Host("client")
	if err != nil {
		log.Fatal(err)
	}
	entry, err := lab.Host("entry")
	if err != nil {
		log.Fatal(err)
	}

	vip := netip.AddrPortFrom(topo.VIP4(), 80)
	l, err := entry.Listen(ctx, "tcp", vip.String())
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	go server.Serve(l)
	defer server.Close()

	capture, err := client.Capture(netnslab.CaptureConfig{})
	if err != nil {
		log.Fatal(err)
	}
	web := &http.Client{Transport: &http.Transport{DialContext: client.Dial}}
	answer, err := web.Get("http://" + vip.String())
	if err != nil {
		log.Fatal(err)
	}
	answer.Body.Close()
	web.CloseIdleConnections()
	trace, err := capture.Close()
	if err != nil {
		log.Fatal(err)
	}
	packets, _ := trace.Retransmitted()
	fmt.Println(answer.Status, trace.Connections(), trace.Resets(), packets)
}

// What the client sees of one connection, and how long the longest silence of the server was.
func ExampleTrace_Flow() {
	var (
		client = netip.MustParseAddrPort("10.77.0.1:40000")
		server = netip.MustParseAddrPort("10.77.0.100:80")
		begin  = time.Unix(0, 0)
	)
	trace := netnslab.Trace{Segments: []netnslab.Segment{
		{Time: begin, Src: server, Dst: client, Seq: 1, Len: 1448},
		{Time: begin.Add(3 * time.Millisecond), Src: server, Dst: client, Seq: 1449, Len: 1448},
		{Time: begin.Add(4 * time.Millisecond), Src: server, Dst: client, Seq: 1, Len: 1448},
	}}
	flow := trace.Flow(tcprepair.NewFlow(server, client)).From(server)
	packets, octets := flow.Retransmitted()
	fmt.Println(flow.LongestGap().Length, packets, octets, flow.Resets())
	// Output: 3ms 1 1448 0
}

func ExampleReadTCPInfo() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	info, err := netnslab.ReadTCPInfo(c.(*net.TCPConn))
	fmt.Println(info.Retransmitted, info.Timeouts, err)
	// Output: 0 0 <nil>
}
