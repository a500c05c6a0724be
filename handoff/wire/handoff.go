// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Handoff gives the receiver a connection that the sender, a dispatcher and the flow's entry, has accepted and not answered: all of it
// in one frame. The receiver asks for the flow with Commit, unless it is Granted, and says Committed when the server has the connection.
// Refuse gives the flow back, before the Commit or after it: nothing of the connection is left at the receiver then. Until one of the
// two has come the sender holds the client's packets.
type Handoff struct {
	Flow     tcprepair.Flow
	Service  string
	Delivery Delivery
	Epoch    uint32
	// Limit is how long the sender waits for Committed.
	Limit    time.Duration
	Snapshot []byte
	// Socket is the path of the UNIX socket for DeliverDescriptor.
	Socket string
	// Granted is set when the flow is the receiver's already, at the next epoch: there is no Commit.
	Granted bool
}

// Locate asks whether the receiver's host has the connection of the Handoff of this id, which it was granted and has not confirmed. A
// receiver that is still at work on it answers when it is done.
type Locate struct {
	Flow tcprepair.Flow
	// Age is the time since the Handoff was made. What ended before that was another connection of the same addresses.
	Age time.Duration
}

// Located answers Locate. When the connection is not here it never will be.
type Located struct {
	Present bool
}

// Relocate asks the host of a connection's server to move it on, because that is too loaded (M-TCP 8). There is no answer if it has moved, else a
// Refuse.
type Relocate struct {
	Flow tcprepair.Flow
	To   string
}

func (m *Handoff) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Service)
	integer(c, 3, &m.Delivery)
	integer(c, 4, &m.Epoch)
	c.span(5, &m.Limit)
	c.bytes(6, &m.Snapshot)
	c.text(7, &m.Socket)
	c.flag(8, &m.Granted)
}

func (m *Locate) code(c *coder) {
	c.flow(1, &m.Flow)
	c.span(2, &m.Age)
}

func (m *Located) code(c *coder) { c.flag(1, &m.Present) }

func (m *Relocate) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.To)
}
