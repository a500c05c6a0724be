// SPDX-License-Identifier: Apache-2.0

package scenario

import "time"

// queue is a server whose capacity is exact and costs no processor: workers that take the same time for every request, first come, first served. When
// a request is answered follows from when it came, so that late timers of a busy machine do not add up.
type queue struct {
	service time.Duration
	// free is when each worker will be done with what it has been given.
	free []time.Time
	// given is the work of all requests so far.
	given time.Duration
}

func newQueue(workers int, service time.Duration) *queue {
	return &queue{service: service, free: make([]time.Time, workers)}
}

// take takes a request that comes now, no earlier than the last one, and returns when it will have been served.
func (q *queue) take(now time.Time) time.Time {
	w := q.next()
	start := q.free[w]
	if start.Before(now) {
		start = now
	}
	q.free[w] = start.Add(q.service)
	q.given += q.service
	return q.free[w]
}

// next is the worker who is free first.
func (q *queue) next() int {
	w := 0
	for i, at := range q.free {
		if at.Before(q.free[w]) {
			w = i
		}
	}
	return w
}

// wait is how long a request that came now would wait for a worker.
func (q *queue) wait(now time.Time) time.Duration { return max(q.free[q.next()].Sub(now), 0) }

// done is the work done until now, no earlier than the last request: a worker who is not free now works without a break until then.
func (q *queue) done(now time.Time) time.Duration {
	left := time.Duration(0)
	for _, at := range q.free {
		left += max(at.Sub(now), 0)
	}
	return q.given - left
}

// Shares of what an occupancy says, as package simulation has them: a server that is always busy and has no queue is at 0.8.
const (
	busyPart  = 0.8
	queuePart = 0.2
)

// occupancy makes a queue's load: of the time since the last reading that workers were busy, and of its queue.
type occupancy struct {
	patience time.Duration // the queue that counts as full
	since    time.Time
	done     time.Duration
}

// read returns the load, 0 to 1. The first reading is of the time since the zero Time, and so is 0 but for the queue.
func (o *occupancy) read(now time.Time, q *queue) float64 {
	done := q.done(now)
	busy := 0.0
	if passed := now.Sub(o.since); passed > 0 && !o.since.IsZero() {
		busy = float64(done-o.done) / float64(passed) / float64(len(q.free))
	}
	o.since, o.done = now, done
	full := min(float64(q.wait(now))/float64(o.patience), 1)
	return min(busyPart*busy+queuePart*full, 1)
}
