// SPDX-License-Identifier: Apache-2.0

package session

// What keeps records, lists, indexes and counts in step: flows enter and leave sessions here and nowhere else.

// insert adds a flow with that tuple to a session, and has it installed. There must be room, and no such flow.
func (t *Table) insert(at int64, session uint32, i Identity, tuple tuple, dig uint32, actions []Action) (*flow, []Action) {
	t.grow()
	ref := t.flows.take(dig)
	f := t.flows.at(ref)
	f.setTuple(&tuple)
	f.marks, f.seen = marks(i), at
	if i == Announced {
		t.patterns[tuple.openings()]++
		t.counters.Waiting++
	}
	t.attach(ref, session)
	return f, append(actions, t.action(Install, f))
}

// attach puts a flow into a session's list. Its timeout is then the session's.
func (t *Table) attach(ref, session uint32) {
	f, d := t.flows.at(ref), t.sessions.at(session)
	f.session, f.generation, f.server = session, d.generation, d.server
	*t.flows.beside(ref) = siblings{next: d.flows}
	if d.flows != 0 {
		t.flows.beside(d.flows).prev = ref
	}
	d.flows = ref
	d.count(f.marks.identity(), 1)
	t.clients.at(d.client).flows++
	f.timeout = d.timeout(f.marks.identity())
	d.until = max(d.until, f.expires())
}

// detach takes a flow out of its session's list. The session may then be empty: see settle.
func (t *Table) detach(ref uint32) {
	f := t.flows.at(ref)
	d := t.sessions.at(f.session)
	beside := *t.flows.beside(ref)
	if beside.prev != 0 {
		t.flows.beside(beside.prev).next = beside.next
	} else {
		d.flows = beside.next
	}
	if beside.next != 0 {
		t.flows.beside(beside.next).prev = beside.prev
	}
	d.count(f.marks.identity(), -1)
	t.clients.at(d.client).flows--
}

// remove takes a flow out of the table, without settling its session.
func (t *Table) remove(ref uint32, actions []Action) []Action {
	f := t.flows.at(ref)
	actions = append(actions, t.action(Remove, f))
	t.detach(ref)
	tuple := f.tuple()
	if f.marks.identity() == Announced {
		t.patterns[tuple.openings()]--
		t.counters.Waiting--
	}
	t.flows.clear(t.hasher.tuple(&tuple), ref)
	return actions
}

// carry takes a flow to another place. The place where it was is then to be cleared.
func (t *Table) carry(from, to uint32) {
	f, beside := t.flows.at(from), *t.flows.beside(from)
	*t.flows.at(to), *t.flows.beside(to) = *f, beside
	if beside.prev != 0 {
		t.flows.beside(beside.prev).next = to
	} else {
		t.sessions.at(f.session).flows = to
	}
	if beside.next != 0 {
		t.flows.beside(beside.next).prev = to
	}
}

// grow moves the flows of one shelf on, while there is a larger rack for them, and begins one when it is time. What was at home on shelf s comes home
// on shelves 2s and 2s+1, or behind: so the new rack is filled from its beginning, and its memory comes page by page.
func (t *Table) grow() {
	x := &t.flows
	if x.begin(); !x.moving() {
		return
	}
	r, p := &x.before, x.moved
	for more := true; more; p = r.after(p) {
		shelf := &r.shelves[p]
		more = shelf.passed > 0 && r.after(p) != x.moved
		for i, tag := range shelf.tags {
			if tag == 0 {
				continue
			}
			from := p*perLine + i
			tuple := r.flows[from].tuple()
			dig := t.hasher.tuple(&tuple)
			if homeOf(dig, len(r.shelves)) != x.moved {
				continue
			}
			t.carry(number(x.level-1, from), number(x.level, x.now.take(dig)))
			r.clear(dig, from)
		}
	}
	x.movedOn()
}

// settle ends a session that has no flows.
func (t *Table) settle(session uint32, actions []Action) []Action {
	d := t.sessions.at(session)
	if !d.empty() {
		return actions
	}
	actions = append(actions, Action{Kind: Over, Session: t.id(session), Server: d.server})
	for ref := d.names; ref != 0; {
		n := t.names.at(ref)
		next := n.next
		t.byName.remove(t.hasher.sum(&n.sum), ref)
		t.names.release(ref)
		ref = next
	}
	t.leave(session)
	if c := t.clients.at(d.client); c.sessions == 0 {
		t.byClient.remove(t.hasher.address(c.address), d.client)
		t.clients.release(d.client)
	}
	t.sessions.release(session)
	t.counters.Over++
	return actions
}

// enter puts a session in front of its client's list.
func (t *Table) enter(session uint32) {
	d := t.sessions.at(session)
	c := t.clients.at(d.client)
	d.next, d.prev = c.sessions, 0
	if c.sessions != 0 {
		t.sessions.at(c.sessions).prev = session
	}
	c.sessions = session
}

// leave takes a session out of its client's list.
func (t *Table) leave(session uint32) {
	d := t.sessions.at(session)
	if d.prev != 0 {
		t.sessions.at(d.prev).next = d.next
	} else {
		t.clients.at(d.client).sessions = d.next
	}
	if d.next != 0 {
		t.sessions.at(d.next).prev = d.prev
	}
}

// count adds n to the number of the session's flows of that identity.
func (d *dialog) count(i Identity, n int) {
	if i == Signalling {
		d.signalling += uint16(n)
		return
	}
	d.media += uint16(n)
}

func (t *Table) action(kind ActionKind, f *flow) Action {
	return Action{Kind: kind, Key: f.key(), Session: f.id(), Server: f.server, Identity: f.marks.identity()}
}
