// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"sync"
	"sync/atomic"
	"testing"
)

// Handoffs that are under way at the same time share the limit.
func TestReserve(t *testing.T) {
	const limit, clients = 10, 100
	s := &service{cfg: ServiceConfig{Limits: LimitsConfig{Connections: limit}}, active: new(atomic.Int64)}
	var group sync.WaitGroup
	var got atomic.Int64
	for range clients {
		group.Go(func() {
			if s.reserve() {
				got.Add(1)
			}
		})
	}
	group.Wait()
	// One that is refused may stand in the way of another for an instant.
	for s.reserve() {
		got.Add(1)
	}
	if got.Load() != limit || s.active.Load() != limit {
		t.Errorf("%d of %d have a place, %d are counted; the limit is %d", got.Load(), clients, s.active.Load(), limit)
	}
	lower(s.active)
	if !s.reserve() {
		t.Error("a place that was given back cannot be taken")
	}
	s.cfg.Limits.Connections = 0
	if !s.reserve() {
		t.Error("refused without a limit")
	}
}
