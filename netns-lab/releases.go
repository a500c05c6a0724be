// SPDX-License-Identifier: Apache-2.0

package netnslab

import "time"

// release is a packet that waits for its time.
type release struct {
	at    time.Duration
	order uint64 // of arrival, the tie-break: equal times keep their order
	frame []byte
	copy  bool // the second of a doubled packet
}

// releases is a binary heap of waiting packets, earliest first. It is written out because container/heap costs an allocation and
// an interface call per packet.
type releases struct {
	heap  []release
	count uint64
}

func (r *releases) len() int { return len(r.heap) }

func (r *releases) before(i, j int) bool {
	a, b := &r.heap[i], &r.heap[j]
	return a.at < b.at || a.at == b.at && a.order < b.order
}

func (r *releases) push(at time.Duration, frame []byte, isCopy bool) {
	r.heap = append(r.heap, release{at: at, order: r.count, frame: frame, copy: isCopy})
	r.count++
	for i := len(r.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !r.before(i, up) {
			return
		}
		r.heap[i], r.heap[up] = r.heap[up], r.heap[i]
		i = up
	}
}

// next returns the time of the earliest packet; false if none waits.
func (r *releases) next() (time.Duration, bool) {
	if len(r.heap) == 0 {
		return 0, false
	}
	return r.heap[0].at, true
}

// pop takes the earliest packet; there must be one.
func (r *releases) pop() release {
	top := r.heap[0]
	last := len(r.heap) - 1
	r.heap[0] = r.heap[last]
	r.heap[last] = release{}
	r.heap = r.heap[:last]
	for i := 0; ; {
		least := i
		for _, down := range [2]int{2*i + 1, 2*i + 2} {
			if down < last && r.before(down, least) {
				least = down
			}
		}
		if least == i {
			return top
		}
		r.heap[i], r.heap[least] = r.heap[least], r.heap[i]
		i = least
	}
}
