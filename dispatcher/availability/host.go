// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// maxGap is the greatest step of sequence numbers that can be a loss; beyond it the sender has started again.
const maxGap = 1 << 15

// Status is what a Detector can tell of a host.
type Status struct {
	State State
	// Since is when it came into this state.
	Since time.Time
	// Heard is when its last heartbeat arrived; zero when none has.
	Heard time.Time
	// FailsAt is the time of the failure that it has announced; zero when it has not.
	FailsAt time.Time
	// Received counts its heartbeats, Lost those that did not arrive by their sequence numbers (SARA 25), and Overtaken those that
	// arrived after later ones.
	Received, Lost, Overtaken uint64
}

// host is what is kept for one host.
type host struct {
	Status
	// deadline is when silence makes it Down; in the state Down it does not count.
	deadline time.Time
	// sent and seq are the newest heartbeat's.
	sent  time.Time
	seq   uint16
	heard bool
	// run is how many heartbeats have come in a row since it was down.
	run int
}

// count keeps the sequence numbers, and reports whether the heartbeat is the newest.
func (h *host) count(b *Beat, interval time.Duration) bool {
	h.Received++
	step := b.Seq - h.seq
	switch {
	case !h.heard:
	case b.Sent.Before(h.sent):
		h.Overtaken++
		if h.Lost > 0 {
			h.Lost-- // it was counted when it was overtaken
		}
		return false
	case step == 0 || step >= maxGap:
		// Later, and not by its number: the sender has started again.
	default:
		// A sender that has started again may hit a higher number by chance: no more can be lost than fit into the time.
		if most := b.Sent.Sub(h.sent)/interval + 2; time.Duration(step) <= most {
			h.Lost += uint64(step - 1)
		}
	}
	h.heard, h.seq, h.sent = true, b.Seq, b.Sent
	return true
}

// wanted is the state that a heartbeat asks for.
func (h *host) wanted(b *Beat) (to State, cause string) {
	h.FailsAt = time.Time{}
	switch b.Flag {
	case vitals.PlannedFailure:
		// By the sender's clock it fails so long after it said so.
		h.FailsAt = b.At.Add(vitals.TimeOf(b.Stamp, b.Sent).Sub(b.Sent))
		if !h.FailsAt.After(b.At) {
			return Down, "the announced time has come"
		}
		return Draining, "it announces its failure"
	case vitals.ApplicationDown:
		return ApplicationDown, "its application is down"
	}
	return Up, "it is available"
}
