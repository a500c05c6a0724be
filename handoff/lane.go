// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"sync/atomic"
	"time"
)

// shut is added to a lane's calls while the lane is shut.
const shut = int64(1) << 62

// lane is one direction of a connection: it lets calls in, or not, and counts their bytes. Three atomic
// additions per call, and a mutex per Write, are what an unmoved connection pays for being movable.
type lane struct {
	// calls is how many calls are inside, plus shut.
	calls atomic.Int64
	// bytes is how many bytes the calls have transferred. It is exact when the lane is shut and empty.
	bytes atomic.Uint64
	// deadline is the application's, whatever the socket's is. Guarded by Conn.mu.
	deadline time.Time
}

// enter asks to be let in. If it returns false the lane is shut and the caller is not inside; empty is then true when
// it was seen empty.
func (l *lane) enter() (ok, empty bool) {
	if l.calls.Add(1) < shut {
		return true, false
	}
	return false, l.leave()
}

// leave is called by who has been let in. It returns true when that emptied a shut lane.
func (l *lane) leave() (empty bool) { return l.calls.Add(-1) == shut }

// empty reports whether the lane is shut and nobody is inside.
func (l *lane) empty() bool { return l.calls.Load() == shut }

func (l *lane) close() { l.calls.Add(shut) }
func (l *lane) open()  { l.calls.Add(-shut) }
