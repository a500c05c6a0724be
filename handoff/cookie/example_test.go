// SPDX-License-Identifier: Apache-2.0

package cookie_test

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/tcprepair"
)

func Example() {
	secret := cookie.Secret{1, 2, 3} // NewSecret makes a real one
	flow := tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:443"), netip.MustParseAddrPort("192.0.2.7:40312"))
	now := time.Unix(1_700_000_000, 0)

	// The dispatcher answers a SYN.
	syn := cookie.Offer{Sequence: 1000, MSS: 1400, Timestamps: true, SACK: true, WindowScaling: true, Scale: 7}
	answer := cookie.Seal(secret, flow, syn, now, 0)

	// Half a minute later, the client's first packet reaches a backend.
	first := cookie.Echo{Sequence: 1001, Acknowledgement: answer.Sequence + 1, Timestamps: true, Timestamp: answer.Timestamp}
	offer, ok := cookie.Recall(flow, first, now.Add(30*time.Second), secret)
	fmt.Println(offer, ok)

	_, ok = cookie.Recall(flow, first, now.Add(5*time.Minute), secret)
	fmt.Println(ok)
	// Output:
	// mss 1400 timestamps true sack true ecn false scale true 7 true
	// false
}
