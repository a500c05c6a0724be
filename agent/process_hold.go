// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// freeze holds the connections' packets and lets CRIU stop the tree.
func (s *processSource) freeze() {
	s.frozenAt = time.Now()
	if err := s.hold(s.frozenAt, gate.Ingress); err != nil {
		s.step(migration.Event{Kind: migration.FreezeFailed, Err: fmt.Errorf("hold packets: %w", err)})
		return
	}
	s.reply(nil)
}

// stopped is when the tree stands still and its image has been taken.
func (s *processSource) stopped() {
	if s.over {
		return
	}
	if err := s.hold(time.Now(), holdBoth); err != nil {
		s.step(migration.Event{Kind: migration.Canceled, Err: fmt.Errorf("hold packets: %w", err)})
		return
	}
	s.step(migration.Event{Kind: migration.Frozen})
}

// hold keeps packets of the tree's connections. Those that the tree sends are let through until it stands still: what it writes just before could
// otherwise neither leave here nor be known there as lost. Afterwards the host is silenced, too.
func (s *processSource) hold(now time.Time, d gate.Direction) error {
	s.held, s.renewAt = d, now.Add(holdRenew)
	return s.e.gate.HoldAll(d, holdTime, s.flows...)
}

// tick prolongs the hold, and tells the machine of its deadline.
func (s *processSource) tick(now time.Time) {
	if s.held != 0 && !now.Before(s.renewAt) {
		if err := s.hold(now, s.held); err != nil {
			s.e.log.Error("cannot go on holding packets", "error", err)
		}
	}
	if d := s.machine.Deadline(); !d.IsZero() && !now.Before(d) {
		s.stepAt(now, migration.Event{Kind: migration.Tick})
	}
}

// sendHeld lets the gate forward from here on, and sends the target what was held.
func (s *processSource) sendHeld() {
	n, _ := s.e.hosts.Node(s.target)
	s.held = 0
	var frames [][]byte
	for _, f := range s.flows {
		held, err := s.e.gate.Forward(f, n, s.e.cfg.Gate.StrayTime)
		if err != nil {
			s.e.log.Error("cannot forward stray packets", "flow", f, "to", s.target, "error", err)
			_ = s.e.gate.Yield(f)
		}
		frames = append(frames, held...)
	}
	s.result.Held += len(frames)
	for len(frames) > 0 {
		n, size := 0, 0
		for n < len(frames) && (n == 0 || size+len(frames[n]) <= heldFrameBytes) {
			size += len(frames[n])
			n++
		}
		s.toTarget(&wire.Held{Frames: frames[:n]})
		frames = frames[n:]
	}
	s.toTarget(&wire.Held{Last: true})
}

// release lets go what was held here.
func (s *processSource) release() {
	if s.held == 0 {
		return
	}
	s.held = 0
	for _, f := range s.flows {
		held, err := s.e.gate.Release(f)
		if err != nil {
			s.e.log.Error("cannot release held packets", "flow", f, "error", err)
		}
		s.result.Held += held.Packets
	}
	s.result.Freeze = time.Since(s.frozenAt)
}
