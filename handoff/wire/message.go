// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

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

// Offer asks the target whether it would take a connection.
type Offer struct {
	Flow    tcprepair.Flow
	Service string
	Epoch   uint32
	// Limit is how long the source waits for the whole move, from the arrival of the offer.
	Limit time.Duration
}

// Accept says that the target has reserved a place for the offered connection.
type Accept struct {
	// Ahead is, after a Process, how many bytes of its memory the target can take ahead of the freeze, besides its image.
	Ahead uint64
	// Lazy is, after a Process, whether its memory can follow it, as was asked for.
	Lazy bool
}

// StateSent says that the State sent ahead is complete, and asks for StateStored.
type StateSent struct{}

// StateStored says that the target holds the State that was sent ahead.
type StateStored struct{}

// Transfer carries the frozen connection: the source has stopped.
type Transfer struct {
	Snapshot, State []byte
}

// Committed tells the source that the flow is the target's.
type Committed struct {
	Epoch uint32
	// PID is, after a Process, the number of its first process at the target; 0 otherwise.
	PID uint32
}

// Held carries packets that the source held back: Ethernet frames, in their order of arrival.
type Held struct {
	Frames [][]byte
	Last   bool
}

// Cancel tells the target that the source withdraws its offer; nothing has been transferred.
type Cancel struct {
	Reason string
}

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

// Cookies asks a server's host to make connections out of first packets that carry a dispatcher's cookies (package cookie). It replaces
// the sender's last Cookies; no address means none any more. It holds beyond the connection that it came over.
type Cookies struct {
	// Secret makes cookies, Also is accepted, too: 16 bytes each, Also may be absent.
	Secret, Also []byte
	// WindowScale is the servers', as clients are told.
	WindowScale uint8
	// Addresses are the services': of each the address, then the port, in 6 or 18 bytes.
	Addresses [][]byte
}

// CookiesTaken answers Cookies: from now on it is so.
type CookiesTaken struct{}

// Unmade tells a dispatcher that a connection could not be made out of a first packet. The client has heard nothing.
type Unmade struct {
	Flow   tcprepair.Flow
	Reason string
}

// Relocate asks the host of a connection's server to move it on, because that is too loaded (M-TCP 8). There is no answer if it has moved, else a
// Refuse.
type Relocate struct {
	Flow tcprepair.Flow
	To   string
}

// Endpoints returns the addresses of m.
func (m *Cookies) Endpoints() ([]netip.AddrPort, error) {
	all := make([]netip.AddrPort, 0, len(m.Addresses))
	for _, v := range m.Addresses {
		if len(v) != 6 && len(v) != 18 {
			return nil, fmt.Errorf("%w: address and port of %d bytes, want 6 or 18", ErrMalformed, len(v))
		}
		all = append(all, parseAddrPort(v))
	}
	return all, nil
}

// AppendEndpoint adds an address to m.
func (m *Cookies) AppendEndpoint(a netip.AddrPort) {
	m.Addresses = append(m.Addresses, binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

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

func (m *Offer) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Service)
	integer(c, 3, &m.Epoch)
	c.span(4, &m.Limit)
}

func (m *Accept) code(c *coder) {
	integer(c, 1, &m.Ahead)
	c.flag(2, &m.Lazy)
}

func (m *StateSent) code(*coder)   {}
func (m *StateStored) code(*coder) {}
func (m *Transfer) code(c *coder) {
	c.bytes(1, &m.Snapshot)
	c.bytes(2, &m.State)
}

func (m *Committed) code(c *coder) {
	integer(c, 1, &m.Epoch)
	integer(c, 2, &m.PID)
}

func (m *Held) code(c *coder) {
	c.list(1, &m.Frames)
	c.flag(2, &m.Last)
}
func (m *Cancel) code(c *coder) { c.text(1, &m.Reason) }
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

func (m *Cookies) code(c *coder) {
	c.bytes(1, &m.Secret)
	c.bytes(2, &m.Also)
	integer(c, 3, &m.WindowScale)
	c.list(4, &m.Addresses)
}
func (m *CookiesTaken) code(*coder) {}
func (m *Relocate) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.To)
}

func (m *Unmade) code(c *coder) {
	c.flow(1, &m.Flow)
	c.text(2, &m.Reason)
}

func (m *GatewayHello) code(c *coder) { c.span(1, &m.Hold) }
func (m *Halves) code(c *coder) {
	c.flow(1, &m.Flow)
	integer(c, 2, &m.Protocol)
	c.list(3, &m.Halves)
}
func (m *Installed) code(*coder) {}
func (m *Presence) code(c *coder) {
	c.flag(1, &m.Draining)
	texts(c, 2, &m.Idle)
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
