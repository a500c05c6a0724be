// SPDX-License-Identifier: Apache-2.0

package session

import "math/bits"

// consistent fails unless counts, lists and indexes of the table agree with its records.
func (d *duel) consistent() {
	d.Helper()
	t := d.table
	flows, sessions, patterns := 0, 0, [4]int{}
	perClient := make(map[uint32][2]int) // flows, sessions
	for ref := uint32(1); ref <= t.sessions.top; ref++ {
		s := t.sessions.at(ref)
		if s.generation == 0 {
			continue
		}
		sessions++
		signalling, media, previous := 0, 0, uint32(0)
		for fr := s.flows; fr != 0; fr = t.flows.beside(fr).next {
			f := t.flows.at(fr)
			if f.session != ref || t.flows.beside(fr).prev != previous {
				d.fail("flow %d is of session %d after %d, want %d after %d", fr, f.session, t.flows.beside(fr).prev, ref, previous)
			}
			tuple := f.tuple()
			if found, _, _ := t.find(&tuple); found != fr || f.server != s.server || f.generation != s.generation {
				d.fail("flow %d is found as %d", fr, found)
			}
			if tuple.exact() == (f.marks.identity() == Announced && tuple.openings() != 0) {
				d.fail("flow %d: open ports do not fit its identity", fr)
			}
			switch f.marks.identity() {
			case Signalling:
				signalling++
			case Announced:
				patterns[tuple.openings()]++
				media++
			case Secondary:
				media++
			}
			previous = fr
		}
		if int(s.signalling) != signalling || int(s.media) != media || signalling+media == 0 {
			d.fail("session %d counts %d and %d, has %d and %d", ref, s.signalling, s.media, signalling, media)
		}
		flows += signalling + media
		names := 0
		for n := s.names; n != 0; n = t.names.at(n).next {
			names++
		}
		if int(s.named) != names {
			d.fail("session %d counts %d names, has %d", ref, s.named, names)
		}
		of := perClient[s.client]
		perClient[s.client] = [2]int{of[0] + signalling + media, of[1] + 1}
	}
	for ref, want := range perClient {
		c := t.clients.at(ref)
		listed := 0
		for s := c.sessions; s != 0; s = t.sessions.at(s).next {
			listed++
		}
		if int(c.flows) != want[0] || listed != want[1] {
			d.fail("client %d counts %d flows and lists %d sessions, want %v", ref, c.flows, listed, want)
		}
	}
	d.same([3]int{t.flows.used, t.sessions.used, t.clients.used}, [3]int{flows, sessions, len(perClient)})
	d.same(t.patterns, patterns)
	for _, c := range []struct {
		index index
		want  int
	}{{t.byClient, len(perClient)}, {t.byName, t.names.used}} {
		filled := 0
		for i := range c.index.buckets {
			filled += perLine - bits.OnesCount64(c.index.buckets[i].tags.having(0))
		}
		d.same(filled, c.want)
	}
	taken := 0
	for _, r := range []*rack{&t.flows.before, &t.flows.now} {
		for i := range r.shelves {
			taken += perLine - bits.OnesCount64(r.shelves[i].tags.having(0))
		}
		for i := range r.flows {
			if free := r.shelves[i/perLine].tags[i%perLine] == 0; free && (r.flows[i] != flow{} || r.beside[i] != siblings{}) {
				d.fail("place %d is free, and there is %+v", i, r.flows[i])
			}
		}
	}
	d.same(taken, flows)
}
