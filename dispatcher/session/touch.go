// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// Touch takes a packet of a flow: the flow is established, its timeout starts anew and its timestamp is now (SARA 6). The first packet of
// an announced flow makes it secondary (SARA 9); if it was open, the actions replace the pattern by the full key. It returns false when no
// session knows the flow: see Open.
func (t *Table) Touch(now time.Time, key Key, actions []Action) (Flow, []Action, bool) {
	ref, actions := t.hit(t.at(now), key, actions)
	if ref == 0 {
		return Flow{}, actions, false
	}
	return t.view(t.at(now), ref), actions, true
}

// Seen is Touch for what the forwarder reports in bulk: at that time, which may be long ago, it had a packet of the flow. A time
// from before the flow was opened or announced, or from before its timestamp, changes nothing: the packet was of another flow that had
// the ports before.
func (t *Table) Seen(when time.Time, key Key, actions []Action) ([]Action, bool) {
	ref, actions := t.hit(t.at(when), key, actions)
	return actions, ref != 0
}

func (t *Table) hit(at int64, key Key, actions []Action) (uint32, []Action) {
	ref := t.search(key)
	if ref == 0 {
		return 0, actions
	}
	f := t.flows.at(ref)
	if at < f.seen {
		return ref, actions
	}
	f.seen = at
	f.marks |= usedMark
	d := t.sessions.at(f.session)
	d.until = max(d.until, f.expires())
	if f.marks.identity() == Announced {
		actions = t.confirm(ref, key, actions)
	}
	return ref, actions
}

// confirm makes an announced flow secondary, and a pattern a flow of that key. The forwarder has the full key before
// the pattern goes, so that no packet falls between.
func (t *Table) confirm(ref uint32, key Key, actions []Action) []Action {
	f := t.flows.at(ref)
	pattern := t.action(Remove, f)
	origin := f.tuple.openings()
	f.marks = confirmed(origin)
	t.patterns[origin]--
	t.counters.Waiting--
	t.counters.Confirmed++
	if origin == 0 {
		return actions
	}
	t.byTuple.remove(t.hasher.tuple(&f.tuple), ref)
	f.tuple, _ = pack(key)
	t.byTuple.add(t.hasher.tuple(&f.tuple), ref)
	return append(actions, t.action(Install, f), pattern)
}
