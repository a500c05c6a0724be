// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// enter takes the lock for an operation on flows, once no other waits in the midst of one on any of them: operations on one flow take
// turns, those on different flows only share the lock. On success the caller unlocks mu; on ErrClosed it has nothing.
func (g *Gate) enter(flows ...tcprepair.Flow) error {
	g.mu.Lock()
	for !g.closed && g.anyRests(flows) {
		g.rested.Wait()
	}
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	return nil
}

func (g *Gate) anyRests(flows []tcprepair.Flow) bool {
	if g.rests == 0 {
		return false
	}
	for _, f := range flows {
		if q := g.queues[f]; q != nil && q.resting {
			return true
		}
	}
	return false
}

// rest gives the lock away for a moment, to whoever is not concerned with this queue's flow. Close waits until it is over.
func (g *Gate) rest(q *queue, pause time.Duration) {
	q.resting = true
	g.rests++
	g.mu.Unlock()
	time.Sleep(pause)
	g.mu.Lock()
	q.resting = false
	g.rests--
	g.rested.Broadcast()
}
