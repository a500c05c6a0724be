// SPDX-License-Identifier: Apache-2.0

package session

// Withdraw removes announced flows of a session, and the secondary flows that came of them (TEARDOWN, BYE). RTCP goes along with RTP: a flow
// whose media is "rtcp" leaves when the flow with the ports before it does. A TCP connection that has begun stays until its End: its last
// packets are still to come. What the session does not have is passed over. The error is ErrNoSession.
func (t *Table) Withdraw(id ID, announcements []Announcement, actions []Action) ([]Action, error) {
	return t.withdraw(id, actions, func(f *flow) bool {
		for _, a := range announcements {
			var promised tuple
			if promised.pack(&Key{a.Client, a.Server, a.Protocol}) && t.came(f, &promised) {
				return true
			}
		}
		return false
	})
}

// WithdrawAll is Withdraw for all announced and secondary flows of a session: its signalling has ended. The error is ErrNoSession.
func (t *Table) WithdrawAll(id ID, actions []Action) ([]Action, error) {
	return t.withdraw(id, actions, func(*flow) bool { return true })
}

func (t *Table) withdraw(id ID, actions []Action, which func(*flow) bool) ([]Action, error) {
	session, d := t.dialog(id)
	if d == nil {
		return actions, t.refuse("withdraw", Key{}, ErrNoSession)
	}
	for ref := d.flows; ref != 0; {
		f := t.flows.at(ref)
		next := t.flows.beside(ref).next
		if f.withdrawable() && which(f) {
			actions = t.remove(ref, actions)
			t.counters.Withdrawn++
		}
		ref = next
	}
	return t.settle(session, actions), nil
}

// withdrawable reports whether signalling can end the flow.
func (f *flow) withdrawable() bool {
	i := f.marks.identity()
	return i == Announced || i == Secondary && f.protocol == protocolUDP
}

// came reports whether a flow came of that promise.
func (t *Table) came(f *flow, promised *tuple) bool {
	pattern := f.tuple().with(f.marks.origin())
	if pattern == *promised || f.is(promised) {
		return true
	}
	return promised.protocol == protocolUDP && t.media.text(f.media) == "rtcp" && pattern == promised.next()
}

// End removes a flow that is over: an agent has reported the end of a connection, or a pure SYN uses its ports anew. The other flows
// of its session stay. It returns false when there is no such flow; an announced flow that is still open does not end this way.
func (t *Table) End(key Key, actions []Action) ([]Action, bool) {
	var exact tuple
	if !exact.pack(&key) || !exact.exact() {
		return actions, false
	}
	ref, f, _ := t.find(&exact)
	if f == nil {
		return actions, false
	}
	session := f.session
	actions = t.remove(ref, actions)
	t.counters.Ended++
	return t.settle(session, actions), true
}

// Close ends a session with all its flows, because its server is gone for instance. The error is ErrNoSession.
func (t *Table) Close(id ID, actions []Action) ([]Action, error) {
	session, d := t.dialog(id)
	if d == nil {
		return actions, t.refuse("close", Key{}, ErrNoSession)
	}
	for d.flows != 0 {
		actions = t.remove(d.flows, actions)
		t.counters.Ended++
	}
	return t.settle(session, actions), nil
}
