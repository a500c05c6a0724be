// SPDX-License-Identifier: Apache-2.0

package agent

import "github.com/rehome-net/rehome/handoff/wire"

// share is what one move keeps in this process's memory, in bytes, of what all of them may keep together
// (MigrationConfig.BufferBytes): the parts of its State and snapshot that have come, and the packets that came too early. Each part is
// bounded for itself, too, but there can be a thousand moves. The zero value is empty; the engine owns it.
type share int

// take counts n bytes more. An error, which is a refusal, means that there is no room, and nothing has been counted.
func (s *share) take(e *engine, n int) error {
	if limit := e.cfg.Migration.BufferBytes; n > limit-e.kept {
		return wire.Refusef(e.cfg.Host, wire.CodeBusy,
			"moves under way keep %d bytes of at most %d, and %d more have come: lower the concurrency, or raise migration.buffer_bytes", e.kept, limit, n)
	}
	e.kept += n
	*s += share(n)
	return nil
}

// give gives n bytes back.
func (s *share) give(e *engine, n int) {
	n = min(n, int(*s))
	e.kept -= n
	*s -= share(n)
}

// giveAll gives back what is left.
func (s *share) giveAll(e *engine) { s.give(e, int(*s)) }
