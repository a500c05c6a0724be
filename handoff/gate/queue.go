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

	// Over the whole hold:
	seen       uint64 // frames read, kept or not: compared with the kernel's count
	kept       Held
	maxPackets int
	maxBytes   int
}

// add keeps a copy of the frame, or counts it as dropped when the queue is full.
func (q *queue) add(frame []byte, tap int) bool {
	q.seen++
	if len(q.frames) >= q.maxPackets || q.bytes+len(frame) > q.maxBytes {
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
	q.frames, q.bytes = nil, 0
	return frames
}
