// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

const (
	// answeredAge is how long an answer is remembered: longer than a dispatcher can ask, and than a frame can be under way.
	answeredAge = time.Minute
	// maxAnswered bounds how many are. They are as rare as agents that die.
	maxAnswered = 1 << 16
)

// answers remembers what a dispatcher has been told about handoffs of which nothing else is kept: that this host does not have the
// connection, or that it has ended. The answer must stay true. The zero value is empty.
type answers struct {
	byID  map[uint64]answer
	order []uint64 // oldest first
}

type answer struct {
	at   time.Time
	over bool
}

func (a *answers) remember(now time.Time, id uint64, over bool) {
	for len(a.order) > 0 && (len(a.order) >= maxAnswered || now.Sub(a.byID[a.order[0]].at) > answeredAge) {
		delete(a.byID, a.order[0])
		a.order = a.order[1:]
	}
	if a.byID == nil {
		a.byID = make(map[uint64]answer)
	}
	if _, ok := a.byID[id]; !ok {
		a.order = append(a.order, id)
	}
	a.byID[id] = answer{at: now, over: over}
}

// known reports whether anything has been said about id.
func (a *answers) known(id uint64) bool {
	_, ok := a.byID[id]
	return ok
}

// over reports whether id has ended, or may have.
func (a *answers) over(id uint64) bool { return a.byID[id].over }
