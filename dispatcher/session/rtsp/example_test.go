// SPDX-License-Identifier: Apache-2.0

package rtsp_test

import (
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/rtsp"
)

// The client's request is seen by the dispatcher, the server's answer by the gateway.
func Example() {
	flow := session.Key{
		Client:   netip.MustParseAddrPort("192.0.2.7:40001"),
		Server:   netip.MustParseAddrPort("203.0.113.10:554"),
		Protocol: 6,
	}
	pair, err := rtsp.NewPair(rtsp.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, seen := range []struct {
		side  inspect.Side
		bytes string
	}{
		{inspect.Client, "SETUP rtsp://cam.example/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=50000-50001\r\n\r\n"},
		{inspect.Server, "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1A2B3C4D;timeout=30\r\n" +
			"Transport: RTP/AVP;unicast;client_port=50000-50001;server_port=6970-6971\r\n\r\n"},
	} {
		parser, err := rtsp.NewParser(rtsp.Config{}, flow, seen.side)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, half := range parser.Feed([]byte(seen.bytes)) {
			outcome := pair.Add(half)
			for _, a := range outcome.Install {
				fmt.Println("install", a.Client, a.Server, a.Media)
			}
			if outcome.Identity != "" {
				fmt.Println("session", outcome.Identity, "silent for at most", outcome.Timeout)
			}
		}
	}
	// Output:
	// install 192.0.2.7:50000 203.0.113.10:6970 rtp
	// install 192.0.2.7:50001 203.0.113.10:6971 rtcp
	// session 1A2B3C4D silent for at most 30s
}
