// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"sync"
	"sync/atomic"
)

// turn says whose goroutine is the engine's. Events keep the order in which one goroutine hands them over: nobody takes the turn while an earlier one
// waits.
//
//	closed ─ open ► open ─ shut ► shut: only run takes turns
type turn struct {
	mu sync.Mutex
	// waiting counts the events that have been handed to run and not been dealt with.
	waiting atomic.Int64
	isOpen  bool
}

// open lets others than run take turns.
func (t *turn) open() {
	t.mu.Lock()
	t.isOpen = true
	t.mu.Unlock()
}

// queued counts an event that is about to be handed to run; dealt is called, in run's turn, when it has been dealt with.
func (t *turn) queued() { t.waiting.Add(1) }
func (t *turn) dealt()  { t.waiting.Add(-1) }

// begin waits for the turn.
func (t *turn) begin() { t.mu.Lock() }

// try takes the turn if it is free and nothing waits for it. It does not wait.
func (t *turn) try() bool {
	if t.waiting.Load() > 0 || !t.mu.TryLock() {
		return false
	}
	if !t.isOpen || t.waiting.Load() > 0 {
		t.mu.Unlock()
		return false
	}
	return true
}

// end gives the turn back.
func (t *turn) end() { t.mu.Unlock() }

// shut leaves the turn to run alone; it is called in one.
func (t *turn) shut() { t.isOpen = false }

// close is shut and a last act, of a run that has no turn.
func (t *turn) close(last func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.isOpen = false
	last()
}
