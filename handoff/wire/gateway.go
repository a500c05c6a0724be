// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// GatewayHello opens a gateway's connection to a dispatcher, which answers with its own.
type GatewayHello struct {
	// Hold is how long the gateway keeps a server's reply back, at most, while it waits for Installed. From the dispatcher it is 0.
	Hold time.Duration
}

// Halves tells a dispatcher what a server's signalling on one flow has said, which the dispatcher does not see itself. It is answered by Installed, or by
// Refuse when the flow is none of the dispatcher's. It may come again after the connection broke.
type Halves struct {
	// Flow is the signalling flow, as a client's packets name it from the server's side: Local is the virtual address.
	Flow tcprepair.Flow
	// Protocol is IPPROTO_TCP or IPPROTO_UDP.
	Protocol uint8
	// Halves are encoded by the package of the flow's protocol, in the order in which the server said them.
	Halves [][]byte
}

// Installed says that the packets of every flow that the Halves of this id announce reach the session's server from now on.
type Installed struct{}

func (m *GatewayHello) code(c *coder) { c.span(1, &m.Hold) }

func (m *Halves) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Protocol)
	c.list(3, &m.Halves)
}

func (m *Installed) code(*coder) {}
