// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"time"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// phase is where a connection is:
//
//	          Forward         switchPath        the time to keep it is over
//	waiting ──────────► sent ────────────► given ────────────► forgotten
//	  │  ▲                   │                      ▲
//	  │  └──────────────────────────────────┘                   │
//	  │         Return               client has all, or time is over
//	  ├──────────────────────────────────► answered ────────────┤
//	  └─► moving ────────────────────────► local, reset ────────┘
type phase uint8

const (
	waiting phase = iota
	asked         // Later: somebody decides
	sent          // to a node; the table does not lead there yet
	given
	answered
	moving // to this host's stack
	over
)

// conn is a connection that nobody serves as yet, or that was given to a node just now.
type conn struct {
	flow        tcprepair.Flow
	cookie, isn uint32
	choice      cookie.Choice
	since       time.Time
	deadline    time.Time
	phase       phase
	stream      stream
	returned    int
	node        gate.Node
	epoch       uint32 // of the flow in the table
	// last is the packet with the client's newest timestamp.
	last *packet
	// reply is what was answered.
	reply *reply
}

func (c *conn) base() uint32 { return c.isn + 1 }

// next is the sequence number that the client sends next.
func (c *conn) next() uint32 {
	n := c.base() + uint32(len(c.stream.bytes))
	if c.stream.ended {
		n++
	}
	return n
}

func (c *conn) same(p *packet) bool { return c.cookie == p.cookie && c.isn == p.isn }
