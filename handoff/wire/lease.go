// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Lease asks the entry to let a flow be moved: until TTL has passed, and unless aborted, To may commit.
type Lease struct {
	Flow  tcprepair.Flow
	Epoch uint32
	To    string
	TTL   time.Duration
}

// Leased grants a Lease.
type Leased struct{}

// LeaseRefused denies a Lease.
type LeaseRefused struct {
	Code   Code
	Reason string
}

// Commit asks the entry to make the sender the flow's owner and to switch the path, if the lease of this id stands.
type Commit struct {
	Flow  tcprepair.Flow
	Epoch uint32
}

// Abort asks the entry to end the lease of this id.
type Abort struct {
	Flow  tcprepair.Flow
	Epoch uint32
}

// Query asks the entry who owns a flow.
type Query struct {
	Flow tcprepair.Flow
}

// Owner is the entry's answer to Commit, Abort and Query: who owns the flow now.
type Owner struct {
	Flow  tcprepair.Flow
	Host  string
	Epoch uint32
	// Unknown is set when the entry has no such flow.
	Unknown bool
}

// Ended tells the entry that a flow's connection is over at the host that says so. It changes nothing unless that host owns the
// flow, and needs no answer.
type Ended struct {
	Flow tcprepair.Flow
	// Epoch is that under which the host had the flow; 0 when it does not know.
	Epoch uint32
	// Quiet is how long no packet of the flow can have come. If one has, the client has used its port again, and the flow is not over.
	Quiet time.Duration
}

// Presence tells an entry whether the sender takes new connections. It holds while the connection that it came over
// stands.
type Presence struct {
	Draining bool
	// Idle are services that move as whole processes, and that nobody listens for at the sender.
	Idle []string
}

func (m *Lease) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Epoch)
	c.text(3, &m.To)
	c.span(4, &m.TTL)
}

func (m *Leased) code(*coder) {}

func (m *LeaseRefused) code(c *coder) {
	integer(c, 1, &m.Code)
	c.text(2, &m.Reason)
}

func (m *Commit) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Epoch)
}

func (m *Abort) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Epoch)
}

func (m *Query) code(c *coder) { c.flow(1, &m.Flow) }

func (m *Owner) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Host)
	integer(c, 3, &m.Epoch)
	c.flag(4, &m.Unknown)
}

func (m *Ended) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Epoch)
	c.span(3, &m.Quiet)
}

func (m *Presence) code(c *coder) {
	c.flag(1, &m.Draining)
	texts(c, 2, &m.Idle)
}
