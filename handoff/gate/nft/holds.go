// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// holds knows which flows are held here, and which have moved on from here, each until when. The kernel has the same, and ends it by itself.
type holds struct {
	held   map[tcprepair.Flow]hold
	strays map[tcprepair.Flow]stray
}

// hold is one flow's.
type hold struct {
	until      time.Time
	directions gate.Direction
}

// stray is where the packets of a flow go that still come here.
type stray struct {
	to    gate.Node
	until time.Time
}

func newHolds() holds {
	return holds{held: make(map[tcprepair.Flow]hold), strays: make(map[tcprepair.Flow]stray)}
}

// isHeld reports whether the flow was held and has not been released; its time may be over.
func (h *holds) isHeld(f tcprepair.Flow) bool {
	_, ok := h.held[f]
	return ok
}

// lapse drops what is over, and returns the holds among it: whoever held those should have released them.
func (h *holds) lapse(now time.Time) (over []tcprepair.Flow) {
	for f, held := range h.held {
		if !now.Before(held.until) {
			delete(h.held, f)
			over = append(over, f)
		}
	}
	for f, s := range h.strays {
		if !now.Before(s.until) {
			delete(h.strays, f)
		}
	}
	return over
}
