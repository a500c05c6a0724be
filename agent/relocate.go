// SPDX-License-Identifier: Apache-2.0

package agent

import "github.com/rehome-net/rehome/handoff/wire"

// relocate moves a connection because its entry finds this host too loaded.
func (e *engine) relocate(in *incoming, id uint64, m *wire.Relocate) {
	if e.entries[m.Flow.Local] != in.name {
		in.send(id, &wire.Refuse{Code: wire.CodeNoService, Reason: "the flow's entry is another host"})
		return
	}
	moved := false
	e.startOperation(MoveRequest{Flow: m.Flow, To: m.To, Timeout: e.times.Limit}, func(int) {}, func(r Moved) { moved = moved || r.Err == nil }, func(err error) {
		if moved {
			return
		}
		if err == nil {
			err = wire.Refusef(e.cfg.Host, wire.CodeNoFlow, "it cannot be moved, or has ended")
		}
		in.send(id, refusal(err))
	})
}
