// SPDX-License-Identifier: Apache-2.0

package sip_test

import (
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
)

// A caller behind NAT: its packets come from another address than it describes.
func Example() {
	flow := session.Key{
		Client:   netip.MustParseAddrPort("198.51.100.9:31022"),
		Server:   netip.MustParseAddrPort("203.0.113.10:5060"),
		Protocol: 17,
	}
	pair, err := sip.NewPair(sip.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	const head = "From: <sip:alice@10.0.0.5>;tag=a\r\nTo: <sip:bob@203.0.113.10>%s\r\nCall-ID: call@a\r\nCSeq: 1 INVITE\r\nContent-Type: application/sdp\r\n\r\n"
	const description = "v=0\r\nc=IN IP4 %s\r\nm=audio %d RTP/AVP 0\r\n"
	for _, seen := range []struct {
		side  inspect.Side
		bytes string
	}{
		{inspect.Client, "INVITE sip:bob@203.0.113.10 SIP/2.0\r\n" + fmt.Sprintf(head+description, "", "10.0.0.5", 40000)},
		{inspect.Server, "SIP/2.0 200 OK\r\n" + fmt.Sprintf(head+description, ";tag=b", "203.0.113.10", 20000)},
	} {
		parser, err := sip.NewParser(sip.Config{}, flow, seen.side)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, half := range parser.Datagram([]byte(seen.bytes)) {
			for _, a := range pair.Add(half).Install {
				fmt.Println("install", a.Client, a.Server, a.Media)
			}
		}
	}
	// Output:
	// install 198.51.100.9:0 203.0.113.10:20000 rtp
	// install 198.51.100.9:0 203.0.113.10:20001 rtcp
}
