// SPDX-License-Identifier: Apache-2.0

package gate

import "time"

// queue keeps the frames of one held flow, in order.
type queue struct {
	frames   [][]byte
	tap      int // index of the tap the last of them came from
	bytes    int // in frames now
	deadline time.Time

	acknowledgement []byte // the host's latest, kept back during Release
	// resting: the operation that ends the hold waits for frames, without the gate's lock. No other operation on the flow begins.
	resting bool

	// Over the whole hold:
	seen       uint64 // frames read, kept or not: compared with the kernel's count
	kept       Held
	maxPackets int
	maxBytes   int
	// room is what all queues of the gate share; nil: there is no bound.
	room *room
}

// room is the memory that queues share: many flows that are each within their own bound may not be so together.
type room struct {
	used, max int    // bytes
	crowded   uint64 // frames for which there was none
}

// take reports whether there is room for so many bytes more, and takes it.
func (r *room) take(n int) bool {
	if r == nil {
		return true
	}
	if r.used+n > r.max {
		r.crowded++
		return false
	}
	r.used += n
	return true
}

func (r *room) give(n int) {
	if r != nil {
		r.used -= n
	}
}

// add keeps a copy of the frame, or counts it as dropped when the queue is full.
func (q *queue) add(frame []byte, tap int) bool {
	q.seen++
	if len(q.frames) >= q.maxPackets || q.bytes+len(frame) > q.maxBytes || !q.room.take(len(frame)) {
		q.kept.Dropped++
		return false
	}
	q.frames = append(q.frames, append([]byte(nil), frame...))
	q.bytes += len(frame)
	q.tap = tap
	q.kept.Packets++
	q.kept.Bytes += len(frame)
	return true
}

// take empties the queue.
func (q *queue) take() [][]byte {
	frames := q.frames
	q.room.give(q.bytes)
	q.frames, q.bytes = nil, 0
	return frames
}
