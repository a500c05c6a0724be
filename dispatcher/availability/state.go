// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"fmt"
	"time"
)

// State is what is known of a host.
type State uint8

// States; the drawing is in the package's documentation.
const (
	// Unknown: nothing has been heard of it yet, and it may still come.
	Unknown State = iota
	// Up: it can be given sessions.
	Up
	// Draining: it has announced that it will fail; its sessions go on, it gets no new ones.
	Draining
	// ApplicationDown: the node lives, and nobody serves there.
	ApplicationDown
	// Down: it was silent for too long, or the time that it had announced has come.
	Down
)

// String returns the state in words.
func (s State) String() string {
	names := [...]string{"unknown", "up", "draining", "application down", "down"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// TakesSessions reports whether a host in this state can be given new sessions.
func (s State) TakesSessions() bool { return s == Up }

// Serves reports whether sessions that a host has are served in this state.
func (s State) Serves() bool { return s == Up || s == Draining }

// silence is the cause of a host's being Down that has only not been heard of.
const silence = "silence"

// Silent reports whether a host is Down because nothing was heard of it, and not because it has said so. It may be merely late.
func (e Event) Silent() bool { return e.To == Down && e.Cause == silence }

// Event is a change of a host's state.
type Event struct {
	Host     uint32
	From, To State
	// At is when it happened: the arrival of a heartbeat, the end of n·d, or the announced time.
	At time.Time
	// Cause says why, for logs.
	Cause string
	// FailsAt is, for Draining, when the host will fail.
	FailsAt time.Time
}
