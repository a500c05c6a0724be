// SPDX-License-Identifier: Apache-2.0

package inspect_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// The gateway reads the server's answer and sends what it says to the dispatcher.
func ExampleHalf_Append() {
	flow := session.Key{
		Client:   netip.MustParseAddrPort("192.0.2.7:40001"),
		Server:   netip.MustParseAddrPort("203.0.113.10:21"),
		Protocol: 6,
	}
	parser, err := ftp.NewParser(ftp.Config{}, flow, inspect.Server)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, half := range parser.Feed([]byte("229 Entering Extended Passive Mode (|||40021|)\r\n")) {
		message, err := half.Append(nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		received, err := inspect.Decode(message)
		fmt.Println(len(message), half.Announces(), received.Status, received.Streams[0].RTP.Port(), err)
	}
	// Output: 60 true 229 40021 <nil>
}

func ExampleDecode() {
	_, err := inspect.Decode([]byte{2, 0, 0})
	fmt.Println(errors.Is(err, inspect.ErrVersion), err)
	// Output: true version 2: encoded half of another version; run the same version of rehome on gateway and dispatcher
}
