// SPDX-License-Identifier: Apache-2.0

package ftp_test

import (
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// A client that asks for a passive transfer, and then tries a bounce.
func Example() {
	flow := session.Key{
		Client:   netip.MustParseAddrPort("192.0.2.7:40001"),
		Server:   netip.MustParseAddrPort("203.0.113.10:21"),
		Protocol: 6,
	}
	pair, err := ftp.NewPair(ftp.Config{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, seen := range []struct {
		side  inspect.Side
		bytes string
	}{
		{inspect.Client, "PASV\r\n"},
		{inspect.Server, "227 Entering Passive Mode (203,0,113,10,156,90)\r\n"},
		{inspect.Client, "PORT 198,51,100,66,0,25\r\n"},
	} {
		parser, err := ftp.NewParser(ftp.Config{}, flow, seen.side)
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, half := range parser.Feed([]byte(seen.bytes)) {
			outcome := pair.Add(half)
			for _, a := range outcome.Install {
				fmt.Println("install", a.Client, a.Server, a.Media)
			}
			for _, f := range outcome.Findings {
				fmt.Println("found", f.Reason, f.Address)
			}
		}
	}
	// Output:
	// install 192.0.2.7:0 203.0.113.10:40026 ftp-data
	// found bounce 198.51.100.66:25
}
