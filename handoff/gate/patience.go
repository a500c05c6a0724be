// SPDX-License-Identifier: Apache-2.0

package gate

import "time"

const (
	// waitTime is how long frames that the kernel has counted as held are waited for that have not come to the tap yet. They have nothing to do
	// but to pass the tap's queue, in the soft interrupt that has counted them; but on a busy machine that may not get to run for as long.
	waitTime = 250 * time.Millisecond
	// waitPause is between two looks.
	waitPause = 100 * time.Microsecond
	// vainTime is for how long after a wait in vain nobody waits: where frames are lost, as a tap is full, each flow would wait for its own.
	vainTime = 10 * time.Second
)

// patience says how long to wait for frames that are on their way to the tap. It has no clock.
type patience struct {
	began bool
	seen  uint64 // frames that had come when it began
	until time.Time
	limit time.Time
	over  bool
}

// newPatience returns one that waits until limit at most, or not at all if another has waited in vain not long before.
func newPatience(now, limit, vain time.Time) patience {
	return patience{limit: limit, over: !vain.IsZero() && now.Sub(vain) < vainTime}
}

// more reports whether to look again after a pause. seen counts the frames that have come.
func (p *patience) more(now time.Time, seen uint64) bool {
	if !p.began {
		p.began, p.seen, p.until = true, seen, now.Add(waitTime)
	}
	return !p.over && now.Before(p.until) && now.Before(p.limit)
}

// vain reports whether all of the time has passed, and nothing has come in it.
func (p *patience) vain(now time.Time, seen uint64) bool {
	return p.began && !p.over && seen == p.seen && !now.Before(p.until)
}
