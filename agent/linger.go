// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// lingering are flows whose connection is over but for what its last packets need: those stay for a time, the same for all. It has
// no clock.
type lingering struct {
	// limit bounds how many there are; when there are more, the oldest are due at once.
	limit int
	time  time.Duration

	flows []lingerer // oldest first
	first int        // of flows that is still there
}

type lingerer struct {
	flow tcprepair.Flow
	due  time.Time
}

func (l *lingering) len() int { return len(l.flows) - l.first }

// add lets a flow linger from now on.
func (l *lingering) add(now time.Time, f tcprepair.Flow) {
	// What has gone is given back to the memory once it is more than what is there.
	if l.first > l.len() {
		n := copy(l.flows, l.flows[l.first:])
		clear(l.flows[n:])
		l.flows, l.first = l.flows[:n], 0
	}
	l.flows = append(l.flows, lingerer{flow: f, due: now.Add(l.time)})
}

// next returns when next is worth calling take: the zero time when nothing lingers.
func (l *lingering) next() time.Time {
	switch {
	case l.len() == 0:
		return time.Time{}
	case l.len() > l.limit:
		return l.flows[l.first].due.Add(-l.time)
	}
	return l.flows[l.first].due
}

// take returns the oldest flow if it is due; early when it has to go before its time, because there are too many.
func (l *lingering) take(now time.Time) (f tcprepair.Flow, early, ok bool) {
	if l.len() == 0 {
		return tcprepair.Flow{}, false, false
	}
	oldest := l.flows[l.first]
	early = oldest.due.After(now)
	if early && l.len() <= l.limit {
		return tcprepair.Flow{}, false, false
	}
	l.first++
	return oldest.flow, early, true
}
