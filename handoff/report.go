// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"math"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// reportEvery is the least time between two reports: what changes meanwhile goes with the next.
const reportEvery = 50 * time.Millisecond

// ReportLoad tells dispatchers, by way of the agent, how loaded the server finds itself: 0 is idle, 1 as much as it can bear. Processors,
// memory, network, disks and the accept queue the agent knows by itself; report what only the server can know, such as how full its own queue of
// requests is. The highest of all that is known about a host counts. NaN takes the report back.
//
// It never waits, may be called for every request, and works without an agent, who hears the last value when there is one.
func (l *Listener) ReportLoad(load float64) {
	l.agent.report.set(func(m *wire.Load) {
		m.Load, m.Unknown = 0, math.IsNaN(load)
		if !m.Unknown {
			m.Load = uint16(math.Round(min(max(load, 0), 1) * 10_000))
		}
	})
}

// ReportDown tells dispatchers that the server runs and cannot serve, because its database is gone for instance; they send this host
// nothing then. Its connections go on. ReportDown(false) ends it.
func (l *Listener) ReportDown(down bool) {
	l.agent.report.set(func(m *wire.Load) { m.Down = down })
}

// report keeps the agent informed.
type report struct {
	mu   sync.Mutex
	load wire.Load
	link *wire.Link // nil unless there is an agent who wants to know
	last time.Time
	// waiting means that a timer will send what has changed.
	waiting bool
}

func (r *report) set(change func(m *wire.Load)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.load
	change(&next)
	if next == r.load {
		return
	}
	urgent := next.Down != r.load.Down
	r.load = next
	r.send(urgent)
}

// linked says what the agent is told over; a nil link ends it.
func (r *report) linked(link *wire.Link, wanted bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.link = nil
	if !wanted {
		return
	}
	r.link = link
	if !r.load.Unknown || r.load.Down {
		r.send(true)
	}
}

// send sends now, or when it is time to.
func (r *report) send(urgent bool) {
	if r.link == nil || r.waiting && !urgent {
		return
	}
	if wait := reportEvery - time.Since(r.last); wait > 0 && !urgent {
		r.waiting = true
		time.AfterFunc(wait, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.waiting = false
			r.send(true)
		})
		return
	}
	r.last = time.Now()
	m := r.load
	_ = r.link.Send(0, &m) // who reads the link notices that it is broken
}
