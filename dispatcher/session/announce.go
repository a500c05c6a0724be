// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// promise is an announcement that is looked at.
type promise struct {
	tuple  tuple
	digest uint32
	media  uint8
	taken  bool // another session has it
}

// Announce adds the flows that a session's signalling has promised (SARA 7), all of them or, with an error, none. What the session has
// already is refreshed. What another session on the same server has goes over to this one, and so does what is overdue elsewhere, because a
// port that is promised anew is no longer used as before. Anything else is a *ConflictError. Other errors are ErrNoSession, ErrKey,
// ErrFull, ErrClientFull and ErrSessionFull; at a limit the session's own overdue flows make room.
func (t *Table) Announce(now time.Time, id ID, announcements []Announcement, actions []Action) ([]Action, error) {
	session, d := t.dialog(id)
	if d == nil {
		return actions, t.refuse("announce", Key{}, ErrNoSession)
	}
	if len(announcements) > t.config.MaxAnnounced {
		return actions, t.refuse("announce", Key{}, ErrSessionFull)
	}
	at := t.at(now)
	need := demand{}
	t.scratch = t.scratch[:0]
	for _, a := range announcements {
		key := Key{a.Client, a.Server, a.Protocol}
		if err := t.consider(at, session, a, key, &need); err != nil {
			return actions, t.refuse("announce", key, err)
		}
	}
	if err := t.space(d, need); err != nil {
		if t.space(d, need.less(t.overdue(at, d))) != nil {
			return actions, t.refuse("announce", Key{}, err)
		}
		actions = t.reclaim(at, session, actions)
	}
	for i := range t.scratch {
		actions = t.accept(at, session, &t.scratch[i], actions)
	}
	return actions, nil
}

// consider looks at one announcement, and refreshes the flow if the session has it.
func (t *Table) consider(at int64, session uint32, a Announcement, key Key, need *demand) error {
	var tuple tuple
	if !tuple.pack(&key) || tuple.clientPort == 0 && tuple.serverPort == 0 {
		return ErrKey
	}
	_, f, dig := t.find(&tuple)
	p := promise{tuple, dig, t.media.number(a.Media), f != nil}
	for i := range t.scratch {
		if t.scratch[i].tuple == tuple {
			return nil
		}
	}
	if f == nil {
		need.fresh++
		t.scratch = append(t.scratch, p)
		return nil
	}
	server := t.sessions.at(session).server
	switch {
	case f.session == session:
		f.seen = max(f.seen, at)
		d := t.sessions.at(session)
		d.until = max(d.until, f.expires())
		return nil
	case f.marks.identity() == Signalling && f.server == server:
		return nil // reaches the right server as it is
	case f.marks.identity() == Signalling || f.server != server && !f.overdue(at):
		return &ConflictError{Session: f.id(), Server: f.server}
	}
	need.taken++
	t.scratch = append(t.scratch, p)
	return nil
}

// accept does what consider has found possible.
func (t *Table) accept(at int64, session uint32, p *promise, actions []Action) []Action {
	if !p.taken {
		var f *flow
		f, actions = t.insert(at, session, Announced, p.tuple, p.digest, actions)
		f.media = p.media
		t.counters.Announced++
		return actions
	}
	ref, f, _ := t.find(&p.tuple) // the flows before may have moved it
	from := f.session
	if f.server != t.sessions.at(session).server {
		t.counters.Replaced++
	}
	t.detach(ref)
	f.seen, f.media = max(f.seen, at), p.media
	t.attach(ref, session)
	return t.settle(from, append(actions, t.action(Install, f)))
}

// demand is what an announcement needs room for.
type demand struct {
	fresh int // flows that are nowhere yet
	taken int // flows of other sessions
}

// less returns the demand that is left when the session gives up n flows.
func (d demand) less(n int) demand { return demand{d.fresh - n, d.taken} }

// space says whether a session has room for the demand.
func (t *Table) space(d *dialog, need demand) error {
	switch {
	case int(d.media)+need.fresh+need.taken > t.config.MaxAnnounced:
		return ErrSessionFull
	case t.flows.used+need.fresh > t.config.MaxFlows:
		return ErrFull
	case int(t.clients.at(d.client).flows)+need.fresh+need.taken > t.config.MaxPerClient:
		return ErrClientFull
	}
	return nil
}

// overdue counts the session's announced and secondary flows that are.
func (t *Table) overdue(at int64, d *dialog) (n int) {
	for ref := d.flows; ref != 0; ref = t.flows.beside(ref).next {
		if f := t.flows.at(ref); f.marks.identity() != Signalling && f.overdue(at) {
			n++
		}
	}
	return n
}

// reclaim removes those flows. The session is about to get others, so it is not settled.
func (t *Table) reclaim(at int64, session uint32, actions []Action) []Action {
	for ref := t.sessions.at(session).flows; ref != 0; {
		f := t.flows.at(ref)
		next := t.flows.beside(ref).next
		if f.marks.identity() != Signalling && f.overdue(at) {
			actions = t.remove(ref, actions)
			t.counters.Purged++
		}
		ref = next
	}
	return actions
}
