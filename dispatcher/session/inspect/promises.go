// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"slices"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// Promises counts who announced a flow, so that it is installed for the first and withdrawn after the last: two early answers to one
// INVITE may share a client's port. The zero Promises is empty.
type Promises struct {
	count map[session.Announcement]int
}

// Len returns the number of flows that are announced now.
func (p *Promises) Len() int { return len(p.count) }

// Replace puts next in the place of previous, which an earlier call returned, and adds to the outcome what that
// changes. It returns what it announced: next, or as much of it as leaves at most limit flows.
func (p *Promises) Replace(o *Outcome, previous, next []session.Announcement, limit int) []session.Announcement {
	if p.count == nil {
		p.count = make(map[session.Announcement]int)
	}
	var over []session.Announcement
	for _, a := range previous {
		if p.count[a]--; p.count[a] <= 0 {
			delete(p.count, a)
			over = append(over, a)
		}
	}
	kept := make([]session.Announcement, 0, len(next))
	for _, a := range next {
		if p.count[a] == 0 {
			if p.Len() >= limit {
				o.Found(Full)
				continue
			}
			if i := slices.Index(over, a); i >= 0 {
				over = slices.Delete(over, i, i+1)
			} else {
				o.Install = append(o.Install, a)
			}
		}
		p.count[a]++
		kept = append(kept, a)
	}
	o.Withdraw = append(o.Withdraw, over...)
	return kept
}
