// SPDX-License-Identifier: Apache-2.0

package session

// Stats counts what a table has and what it did.
type Stats struct {
	Flows, Sessions, Clients, Names int // now
	Waiting                         int // of the flows: announced and not yet seen
	Inactive                        int // of the flows: found inactive in the last complete round of Purge

	Opened    uint64 // sessions
	Joined    uint64 // signalling flows added to sessions
	Announced uint64 // flows announced, repetitions not counted
	Confirmed uint64 // announced flows that became secondary
	Moved     uint64 // sessions moved to another server
	Ended     uint64 // flows that were reported to be over, or whose session was closed
	Withdrawn uint64 // announced and secondary flows that signalling has ended
	Purged    uint64 // flows removed because nobody used them
	Replaced  uint64 // overdue flows that another session's announcement has taken
	Over      uint64 // sessions over

	Conflicts    uint64 // announcements and names refused: promised to another server
	RefusedFull  uint64 // flows and names refused: table full
	RefusedLimit uint64 // flows and names refused: limit of client or session
}

// Stats returns the counters.
func (t *Table) Stats() Stats {
	s := t.counters
	s.Flows, s.Sessions, s.Clients, s.Names = t.flows.used, t.sessions.used, t.clients.used, t.names.used
	return s
}
