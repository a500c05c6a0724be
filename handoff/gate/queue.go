// SPDX-License-Identifier: Apache-2.0

package gate

import "time"

// queue keeps the frames of one held flow, in order.
type queue struct {
	frames   [][]byte
	tap      int // index of the tap the last of them came from
	bytes    int // in frames now
	deadline time.Time

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

// take removes and returns the first n frames.
func (q *queue) take(n int) [][]byte {
	frames := q.frames[:n:n]
	q.frames = q.frames[n:]
	for _, f := range frames {
		q.bytes -= len(f)
	}
	return frames
}
