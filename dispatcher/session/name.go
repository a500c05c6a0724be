// SPDX-License-Identifier: Apache-2.0

package session

import "crypto/sha256"

// Name lets a session be found by a text: a SIP Call-ID, an RTSP session identifier, a user's name, with a prefix that says which. A session
// may have several names; they go with it. A name that a session on the same server has stays there, and that is no error: whoever
// follows it comes to the right server. The error is ErrNoSession, ErrName, ErrFull, ErrSessionFull or, when a session on another server has
// it, a *ConflictError.
func (t *Table) Name(id ID, text string) error {
	session, d := t.dialog(id)
	if d == nil {
		return t.refuse("name", Key{}, ErrNoSession)
	}
	if text == "" {
		return t.refuse("name", Key{}, ErrName)
	}
	sum := sha256.Sum256([]byte(text))
	ref, dig := t.findName(sum)
	if ref != 0 {
		has := t.names.at(ref).session
		if other := t.sessions.at(has); other.server != d.server {
			return t.refuse("name", Key{}, &ConflictError{Session: t.id(has), Server: other.server})
		}
		return nil
	}
	switch {
	case int(d.named) >= t.config.MaxNames:
		return t.refuse("name", Key{}, ErrSessionFull)
	case t.names.used >= t.config.MaxFlows:
		return t.refuse("name", Key{}, ErrFull)
	}
	ref, n := t.names.alloc()
	n.sum, n.session, n.next = sum, session, d.names
	d.names = ref
	d.named++
	t.byName.add(dig, ref)
	return nil
}

// Unname takes a name from the session that has it, when a SIP dialog on a trunk ends for instance. It returns false if none has.
func (t *Table) Unname(text string) bool {
	ref, dig := t.findName(sha256.Sum256([]byte(text)))
	if ref == 0 {
		return false
	}
	n := t.names.at(ref)
	d := t.sessions.at(n.session)
	place := &d.names
	for *place != ref {
		place = &t.names.at(*place).next
	}
	*place = n.next
	d.named--
	t.byName.remove(dig, ref)
	t.names.release(ref)
	return true
}
