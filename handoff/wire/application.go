// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Register announces a listening service of an application.
type Register struct {
	Service string
	// Address is the listener's address, host:port; an unspecified host means every local address.
	Address string
	// Importer says that the application can take connections over; an application without it only gives them away.
	Importer bool
	// Preparer says that the application can send part of a connection's State ahead, and wants Prepare before Export.
	Preparer bool
}

// Registered answers Register.
type Registered struct {
	// Loads says that the agent takes Load. One that does not say so does not know the frame.
	Loads bool
}

// Load says how the application of a service is. It holds until the next one, or until the link ends, and has no answer.
type Load struct {
	Service string
	// Load is how loaded the application finds itself, in 1/10,000; more counts as 10,000.
	Load uint16
	// Unknown is set when it does not say how loaded it is.
	Unknown bool
	// Down is set when it runs and cannot serve.
	Down bool
}

// List asks an application for its connections, or for one of them.
type List struct {
	// Flow is the one asked for; all when it is not valid.
	Flow tcprepair.Flow
}

// Flows answers List. A long answer comes in several frames of the same id.
type Flows struct {
	Flows []FlowStatus
	Last  bool
}

// FlowStatus describes one connection of an application.
type FlowStatus struct {
	Flow    tcprepair.Flow
	Service string
	Epoch   uint32
	// Age is the time since the application accepted or imported the connection.
	Age time.Duration
	// Movable is false when the application has no way to export the connection's State.
	Movable bool
}

// Prepare asks an application for the part of a connection's State that can be sent ahead. The application goes
// on serving the connection.
type Prepare struct {
	Flow   tcprepair.Flow
	Target string
	Limit  time.Duration
}

// Prepared answers Prepare.
type Prepared struct {
	Ahead []byte
}

// Export asks an application to export a connection.
type Export struct {
	Flow tcprepair.Flow
	// Target is the host that will take the connection over.
	Target string
	// Limit is how long the agent waits for the answer.
	Limit time.Duration
}

// Exported answers Export: the State, and the connection's socket as a descriptor. The application neither reads nor
// writes from here on, until Resume or Migrated.
type Exported struct {
	State   []byte
	Epoch   uint32
	Service string
}

// Resume tells the application that the move did not happen: the connection goes on.
type Resume struct {
	Reason string
}

// Migrated tells the application that the connection is at its new host.
type Migrated struct{}

// Import hands a connection to the target's application: its socket as a descriptor (still frozen, not to be touched
// before Activate) and its State.
type Import struct {
	Flow    tcprepair.Flow
	Epoch   uint32
	Service string
	// Ahead is what the source's application sent ahead with Prepared.
	Ahead []byte
	State []byte
	// Late is set when the agent has more to give to the socket at Activate, which is lost with the agent: the
	// application repeats it in Recover.
	Late bool
	// Fresh is set when a dispatcher has accepted the connection and nobody has served it yet: there is no State, the socket is
	// live already, and Activate follows at once, whatever the application answers.
	Fresh bool
}

// Imported says that the application understood the State and waits for Activate.
type Imported struct{}

// Activate says that the connection is live and the application's.
type Activate struct{}

// Withdraw takes an Import back; the application closes the descriptor.
type Withdraw struct {
	Reason string
}

// Recover is what an application says to a new agent about a move that the old one left unfinished; the connection's
// socket comes along. The agent asks the entry who owns the flow and answers Resume or Migrated to a source, Activate or
// Withdraw to a target.
type Recover struct {
	Flow    tcprepair.Flow
	Service string
	// Epoch is the flow's epoch before the move.
	Epoch uint32
	// Target is set when the sender was to import the connection.
	Target bool
	// Peer is the host that the Export named; empty for a target.
	Peer string
	// Late is the Import's.
	Late bool
}

// append encodes one entry of Flows with the grammar of a frame's fields.
func (s *FlowStatus) append(b []byte) []byte {
	c := coder{encoding: true, out: b}
	s.code(&c)
	return c.out
}

func (s *FlowStatus) parse(v []byte) error {
	c := coder{}
	if err := c.scan(v); err != nil {
		return err
	}
	s.code(&c)
	return c.finish()
}

func (m *Register) code(c *coder) {
	c.text(1, &m.Service)
	c.text(2, &m.Address)
	c.flag(3, &m.Importer)
	c.flag(4, &m.Preparer)
}

func (m *Registered) code(c *coder) { c.flag(1, &m.Loads) }

func (m *Load) code(c *coder) {
	c.text(1, &m.Service)
	integer(c, 2, &m.Load)
	c.flag(3, &m.Unknown)
	c.flag(4, &m.Down)
}

func (m *List) code(c *coder) { c.flow(1, &m.Flow) }

func (m *Flows) code(c *coder) {
	raw := make([][]byte, 0, len(m.Flows))
	if c.encoding {
		for i := range m.Flows {
			raw = append(raw, m.Flows[i].append(nil))
		}
	}
	c.list(1, &raw)
	c.flag(2, &m.Last)
	if !c.encoding {
		for _, v := range raw {
			var s FlowStatus
			if err := s.parse(v); err != nil {
				c.fail(1, "%v", err)
				return
			}
			m.Flows = append(m.Flows, s)
		}
	}
}

func (s *FlowStatus) code(c *coder) {
	c.flow(1, &s.Flow)
	c.text(2, &s.Service)
	integer(c, 3, &s.Epoch)
	c.span(4, &s.Age)
	c.flag(5, &s.Movable)
}

func (m *Prepare) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Target)
	c.span(3, &m.Limit)
}

func (m *Prepared) code(c *coder) { c.bytes(1, &m.Ahead) }

func (m *Export) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Target)
	c.span(3, &m.Limit)
}

func (m *Exported) code(c *coder) {
	c.bytes(1, &m.State)
	integer(c, 2, &m.Epoch)
	c.text(3, &m.Service)
}

func (m *Resume) code(c *coder) { c.text(1, &m.Reason) }
func (m *Migrated) code(*coder) {}

func (m *Import) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Epoch)
	c.text(3, &m.Service)
	c.bytes(4, &m.State)
	c.bytes(5, &m.Ahead)
	c.flag(6, &m.Late)
	c.flag(7, &m.Fresh)
}

func (m *Imported) code(*coder)   {}
func (m *Activate) code(*coder)   {}
func (m *Withdraw) code(c *coder) { c.text(1, &m.Reason) }

func (m *Recover) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Service)
	integer(c, 3, &m.Epoch)
	c.flag(4, &m.Target)
	c.text(5, &m.Peer)
	c.flag(6, &m.Late)
}
