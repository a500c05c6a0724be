// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"time"
)

// ErrRestarted means that an agent died in the middle of the move.
var ErrRestarted = errors.New("the agent was restarted during the move")

// RecoverSource returns a source whose agent died after the application had exported: nothing is known but what the
// application remembers. It fences the target off and then does what the entry says. p.Target may be empty.
func RecoverSource(now time.Time, p SourceParams, cfg Config) (*Source, []Action) {
	s := NewSource(p, cfg)
	s.deadline = now.Add(s.cfg.Limit)
	s.resolve(now, ErrRestarted)
	return s, s.out
}

// RecoverTarget returns a target whose agent died after it had offered the connection to the application. It thaws only
// what the entry already calls its own: SendCommit is to be carried out as an Abort. Neither of the two others would do. A
// mere question leaves the lease standing, and a Commit that the dead agent had written may reach the entry after the
// answer: nobody would have the connection. A Commit might break the promise of a Refuse that the dead agent had sent.
func RecoverTarget(now time.Time, p TargetParams, cfg Config) (*Target, []Action) {
	t := NewTarget(p, cfg)
	t.state, t.alone = TargetCommitting, true
	t.deadline = now.Add(t.limit + t.cfg.Orphan)
	t.retry = now.Add(t.cfg.Retry)
	t.do(SendCommit)
	return t, t.out
}
