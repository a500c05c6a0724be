// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// Move gives a session to another server, with all its flows: signalling, announced and secondary. The caller moves the connections
// first; the actions then switch all of the session's paths. Flows tells beforehand which there are, and the actions tell whether
// more have come in the meantime. The error is ErrNoSession.
func (t *Table) Move(id ID, server Server, actions []Action) ([]Action, error) {
	session, d := t.dialog(id)
	if d == nil {
		return actions, t.refuse("move", Key{}, ErrNoSession)
	}
	if d.server == server {
		return actions, nil
	}
	d.server = server
	t.leave(session)
	t.enter(session) // in front: the client's next session follows
	for ref := d.flows; ref != 0; ref = t.flows.beside(ref).next {
		f := t.flows.at(ref)
		f.server = server
		actions = append(actions, t.action(Install, f))
	}
	t.counters.Moved++
	return actions, nil
}

// Flows appends a session's flows, the youngest first; none if there is no such session. Times are judged at now.
func (t *Table) Flows(now time.Time, id ID, flows []Flow) []Flow {
	_, d := t.dialog(id)
	if d == nil {
		return flows
	}
	for ref := d.flows; ref != 0; ref = t.flows.beside(ref).next {
		flows = append(flows, Flow{})
		t.view(t.at(now), t.flows.at(ref), &flows[len(flows)-1])
	}
	return flows
}

// Cursor is a place among the sessions. The zero Cursor is the start.
type Cursor uint32

// Scan appends the sessions found at the next n places, and returns where to go on; 0 at the end. Sessions that come and go in the meantime
// may be missed, others are met once. Who wants a server's sessions picks them out.
func (t *Table) Scan(from Cursor, n int, sessions []Session) ([]Session, Cursor) {
	ref := uint32(from) + 1
	for ; n > 0 && ref <= t.sessions.top; n-- {
		if t.sessions.at(ref).generation != 0 {
			sessions = append(sessions, t.sessionView(ref))
		}
		ref++
	}
	if ref > t.sessions.top {
		return sessions, 0
	}
	return sessions, Cursor(ref - 1)
}
