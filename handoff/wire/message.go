// SPDX-License-Identifier: Apache-2.0

package wire

// Hello opens every connection, in both directions.
type Hello struct {
	// Min and Max are the versions of the protocol that the sender speaks.
	Min, Max uint16
	// Name is the sender: a host's name between agents, a program's name from an application.
	Name string
	// Software is the sender's version, for logs only.
	Software string
}

// Ping asks for a Pong with the same id: the proof of life on an idle connection.
type Ping struct{}

// Pong answers Ping.
type Pong struct{}

// Refuse says no to the request of the same id. From a target it is also a promise: the target has not asked the
// entry for the flow and never will.
type Refuse struct {
	Code   Code
	Reason string
}

// Chunk carries the next part of a value too large for one frame.
type Chunk struct {
	Blob Blob
	Data []byte
}

func (m *Hello) code(c *coder) {
	integer(c, 1, &m.Min)
	integer(c, 2, &m.Max)
	c.text(3, &m.Name)
	c.text(4, &m.Software)
}

func (m *Ping) code(*coder) {}
func (m *Pong) code(*coder) {}

func (m *Refuse) code(c *coder) {
	integer(c, 1, &m.Code)
	c.text(2, &m.Reason)
}

func (m *Chunk) code(c *coder) {
	integer(c, 1, &m.Blob)
	c.bytes(2, &m.Data)
}
