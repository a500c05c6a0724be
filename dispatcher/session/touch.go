// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// Touch takes a packet of a flow: the flow is established, its timeout starts anew and its timestamp is now (SARA 6). The first packet of
// an announced flow makes it secondary (SARA 9); if it was open, the actions replace the pattern by the full key. It returns false when no
// session knows the flow: see Open.
func (t *Table) Touch(now time.Time, key Key, actions []Action) (f Flow, _ []Action, ok bool) {
	var packet tuple
	packet.pack(&key)
	at := t.at(now)
	hit, actions := t.hit(at, &packet, actions)
	if hit != nil {
		t.view(at, hit, &f)
	}
	return f, actions, hit != nil
}

// Seen is Touch for what the forwarder reports in bulk: at that time, which may be long ago, it had a packet of the flow. A time
// from before the flow was opened or announced, or from before its timestamp, changes nothing: the packet was of another flow that had
// the ports before.
func (t *Table) Seen(when time.Time, key Key, actions []Action) ([]Action, bool) {
	var packet tuple
	packet.pack(&key)
	hit, actions := t.hit(t.at(when), &packet, actions)
	return actions, hit != nil
}

func (t *Table) hit(at int64, packet *tuple, actions []Action) (*flow, []Action) {
	ref, f := t.search(packet)
	if f == nil || at < f.seen {
		return f, actions
	}
	f.seen = at
	f.marks |= usedMark
	d := t.sessions.at(f.session)
	d.until = max(d.until, f.expires())
	if f.marks.identity() == Announced {
		return t.confirm(ref, packet, actions)
	}
	return f, actions
}

// confirm makes an announced flow secondary, and a pattern a flow of that packet. The forwarder has the full key before
// the pattern goes, so that no packet falls between.
func (t *Table) confirm(ref uint32, packet *tuple, actions []Action) (*flow, []Action) {
	f := t.flows.at(ref)
	pattern, promised := t.action(Remove, f), f.tuple()
	origin := promised.openings()
	f.marks = confirmed(origin)
	t.patterns[origin]--
	t.counters.Waiting--
	t.counters.Confirmed++
	if origin == 0 {
		return f, actions
	}
	place := t.flows.take(t.hasher.tuple(packet))
	t.carry(ref, place)
	t.flows.clear(t.hasher.tuple(&promised), ref)
	f = t.flows.at(place)
	f.setTuple(packet)
	return f, append(actions, t.action(Install, f), pattern)
}
