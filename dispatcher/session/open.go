// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"time"
)

// Open starts a session on terms.Server with a signalling flow that no session knows (SARA 5, 17). Ask Lookup, Named and ServerOf first;
// admission and the choice of the server stand between. The error is ErrKey, ErrKnown, ErrFull, ErrClientFull or ErrTimeout.
func (t *Table) Open(now time.Time, key Key, terms Terms, actions []Action) (ID, []Action, error) {
	tuple, dig, err := t.fresh(key)
	if err == nil {
		err = terms.Timeouts.validate()
	}
	address := clientOf(tuple.from)
	owner, ownerDigest := t.findClient(address)
	if err == nil {
		err = t.room(owner, 1)
	}
	if err != nil {
		return 0, actions, t.refuse("open", key, err)
	}
	if owner == 0 {
		var c *client
		owner, c = t.clients.alloc()
		c.address = address
		t.byClient.add(ownerDigest, owner)
	}
	session, d := t.sessions.alloc()
	t.generation = max(1, t.generation+1) // 0 is no generation
	d.generation, d.server, d.client = t.generation, terms.Server, owner
	d.setTimeouts(terms.Timeouts.or(t.config.Timeouts))
	t.enter(session)
	t.counters.Opened++
	_, actions = t.insert(t.at(now), session, Signalling, tuple, dig, actions)
	return t.id(session), actions, nil
}

// Join adds a signalling flow to a session: a SIP dialog that goes on over another flow, an RTSP session that is resumed over a new
// connection. The error is ErrNoSession, ErrKey, ErrKnown, ErrFull, ErrClientFull or ErrSessionFull.
func (t *Table) Join(now time.Time, id ID, key Key, actions []Action) ([]Action, error) {
	session, d := t.dialog(id)
	if d == nil {
		return actions, t.refuse("join", key, ErrNoSession)
	}
	tuple, dig, err := t.fresh(key)
	if err == nil {
		err = t.room(d.client, 1)
	}
	if err == nil && int(d.signalling) >= t.config.MaxSignalling {
		err = ErrSessionFull
	}
	if err != nil {
		return actions, t.refuse("join", key, err)
	}
	t.counters.Joined++
	_, actions = t.insert(t.at(now), session, Signalling, tuple, dig, actions)
	return actions, nil
}

// SetTimeouts changes a session's timeouts, where they are not zero, and those of its flows. What a server says on the wire may be any time; it is
// brought into the range of MinTimeout to MaxTimeout. The error is ErrNoSession.
func (t *Table) SetTimeouts(id ID, timeouts Timeouts) error {
	_, d := t.dialog(id)
	if d == nil {
		return t.refuse("set timeouts", Key{}, ErrNoSession)
	}
	for _, d := range []*time.Duration{&timeouts.Signalling, &timeouts.Media} {
		if *d != 0 {
			*d = min(max(*d, MinTimeout), MaxTimeout)
		}
	}
	d.setTimeouts(timeouts.or(d.timeouts()))
	d.until = 0
	for ref := d.flows; ref != 0; ref = t.flows.beside(ref).next {
		f := t.flows.at(ref)
		f.timeout = d.timeout(f.marks.identity())
		d.until = max(d.until, f.expires())
	}
	return nil
}

// fresh returns the tuple and digest of a key of which there is no flow, announced or not.
func (t *Table) fresh(key Key) (tuple, uint32, error) {
	var tuple tuple
	if !tuple.pack(&key) || !tuple.exact() {
		return tuple, 0, ErrKey
	}
	_, known, dig := t.find(&tuple)
	if known != nil {
		return tuple, dig, ErrKnown
	}
	return tuple, dig, nil
}

// room says whether n more flows have room, for a client that may be unknown yet (0).
func (t *Table) room(owner uint32, n int) error {
	switch {
	case t.flows.used+n > t.config.MaxFlows:
		return ErrFull
	case n > t.config.MaxPerClient, owner != 0 && int(t.clients.at(owner).flows)+n > t.config.MaxPerClient:
		return ErrClientFull
	}
	return nil
}

// refuse counts and wraps an error.
func (t *Table) refuse(op string, key Key, err error) error {
	switch {
	case errors.Is(err, ErrFull):
		t.counters.RefusedFull++
	case errors.Is(err, ErrClientFull), errors.Is(err, ErrSessionFull):
		t.counters.RefusedLimit++
	case errors.Is(err, ErrConflict):
		t.counters.Conflicts++
	}
	return &OpError{Op: op, Key: key, Err: err}
}
