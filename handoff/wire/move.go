// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

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
