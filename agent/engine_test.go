// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
)

// TestStopWithoutEntry stops an agent while a connection that it has taken waits for an entry that does not answer: the agent ends all
// the same, and what it leaves is the next agent's to recover.
func TestStopWithoutEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := testEngine(t, "b", "a", "b")
		m, actions := migration.RecoverTarget(time.Now(), migration.TargetParams{Host: "a", Epoch: 1}, e.times)
		tg := &target{e: e, id: 1, machine: m, flow: testFlow(1), service: "s", epoch: 1, entry: "b", recovering: true}
		e.targets[tg.id], e.taking[tg.flow] = tg, tg
		tg.begin(time.Now(), actions)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		start := time.Now()
		_ = e.run(ctx)
		if took, most := time.Since(start), time.Second+e.times.Limit+e.times.Grace; took != most {
			t.Errorf("ended after %v, want %v", took, most)
		}
		if len(e.targets) != 1 || m.State() != migration.TargetCommitting {
			t.Errorf("the move was decided without the entry: %v", m.State())
		}
	})
}
