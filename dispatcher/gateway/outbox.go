// SPDX-License-Identifier: Apache-2.0

package gateway

import "time"

// outbox is the gateway's side of the channel to the dispatcher: it keeps every report until it is answered, and sends what is not answered again when a
// new connection stands. It is pure: what happens comes in, what is to be sent or has been given up comes out.
//
//	         add                  sent                answered
//	(none) ──────► waiting ─────────────────► unanswered ─────► (gone)
//	                  ▲   up: all, in order       │
//	                  └────────── down ───────────┘       too old, too many: given up
type outbox struct {
	keep time.Duration // of a report without an answer
	max  int           // reports
	up   bool
	// queue has the reports in order of their ids.
	queue []kept
	// Given up, for counting.
	expired, dropped uint64
}

type kept struct {
	report
	added time.Time
}

// add takes a report. It returns what is to be sent now, and the reports that have been given up to make room.
func (o *outbox) add(now time.Time, r report) (send []report, lost []uint64) {
	for len(o.queue) >= o.max {
		lost = append(lost, o.queue[0].id)
		o.queue = o.queue[1:]
		o.dropped++
	}
	o.queue = append(o.queue, kept{report: r, added: now})
	if o.up {
		send = []report{r}
	}
	return send, lost
}

// connected says that a new connection stands. It returns what is to be sent on it.
func (o *outbox) connected() []report {
	o.up = true
	send := make([]report, 0, len(o.queue))
	for _, k := range o.queue {
		send = append(send, k.report)
	}
	return send
}

// disconnected says that the connection is gone; what is not answered waits for the next.
func (o *outbox) disconnected() { o.up = false }

// answered takes the dispatcher's answer to a report. It reports whether there was such a report: an answer may come twice.
func (o *outbox) answered(id uint64) bool {
	for i, k := range o.queue { // answers come in order: it is the first as a rule
		if k.id != id {
			continue
		}
		if i == 0 {
			o.queue = o.queue[1:]
		} else {
			o.queue = append(o.queue[:i], o.queue[i+1:]...)
		}
		return true
	}
	return false
}

// expire gives up what is too old to be of use.
func (o *outbox) expire(now time.Time) (lost []uint64) {
	for len(o.queue) > 0 && now.Sub(o.queue[0].added) >= o.keep {
		lost = append(lost, o.queue[0].id)
		o.queue = o.queue[1:]
		o.expired++
	}
	return lost
}

// redial returns how long to wait before the next attempt to connect, after so many in a row that failed.
func redial(failures int) time.Duration {
	const first, most = 10 * time.Millisecond, time.Second
	if failures > 7 {
		return most
	}
	return min(first<<max(failures-1, 0), most)
}
