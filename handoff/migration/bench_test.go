// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"testing"
	"time"
)

// BenchmarkMove is everything that the three parties decide for one move: nothing of it may be seen beside the
// microseconds of the freeze.
func BenchmarkMove(b *testing.B) {
	var l Ledger
	owner := Owner{Host: "a", Epoch: 1}
	now := origin
	b.ReportAllocs()
	id := uint64(0)
	for b.Loop() {
		id++
		now = now.Add(time.Second)
		s := NewSource(SourceParams{Host: "a", Target: "b", Epoch: 1}, Config{})
		t := NewTarget(TargetParams{Host: "b", Epoch: 1}, Config{})
		s.Step(now, Event{Kind: Start})
		t.Step(now, Event{Kind: Start})
		r := LeaseRequest{ID: id, Flow: flowUnderTest, Epoch: 1, From: "a", To: "b", TTL: 10 * time.Second}
		if err := l.Lease(now, r, owner); err != nil {
			b.Fatal(err)
		}
		for _, k := range []EventKind{Leased, Accepted, Exported, Frozen} {
			s.Step(now, Event{Kind: k})
		}
		for _, k := range []EventKind{Transferred, Restored, Imported} {
			t.Step(now, Event{Kind: k})
		}
		if _, err := l.Commit(now, id, flowUnderTest, "b"); err != nil {
			b.Fatal(err)
		}
		l.End(now, id, flowUnderTest)
		t.Step(now, Event{Kind: OwnerIs, Owner: Owner{Host: "b", Epoch: 2}})
		s.Step(now, Event{Kind: Committed})
		t.Step(now, Event{Kind: HeldLast})
		if s.State() != SourceMoved || t.State() != TargetLive {
			b.Fatalf("ended as %v and %v", s.State(), t.State())
		}
	}
}

// BenchmarkHandoff is everything that the two parties of a handoff decide.
func BenchmarkHandoff(b *testing.B) {
	for _, atOnce := range []bool{false, true} {
		name := "in two steps"
		if atOnce {
			name = "at once"
		}
		b.Run(name, func(b *testing.B) {
			now := origin
			b.ReportAllocs()
			for b.Loop() {
				g := NewGiver(time.Second, 3*time.Second, atOnce)
				k := NewTaker(TargetParams{Host: "b", Epoch: 1, Limit: time.Second}, atOnce, Config{})
				g.Step(now, Event{Kind: Start})
				if atOnce {
					g.Step(now, Event{Kind: CommitMade})
				}
				k.Step(now, Event{Kind: Start})
				k.Step(now, Event{Kind: Restored})
				if !atOnce {
					g.Step(now, Event{Kind: CommitAsked})
					g.Step(now, Event{Kind: CommitMade})
					k.Step(now, Event{Kind: OwnerIs, Owner: Owner{Host: "b", Epoch: 2}})
				}
				k.Step(now, Event{Kind: Delivered})
				g.Step(now, Event{Kind: Committed})
				if g.State() != GiverGiven || k.State() != TakerTaken {
					b.Fatalf("ended as %v and %v", g.State(), k.State())
				}
			}
		})
	}
}

// BenchmarkStep is one event in the frozen part: the transfer that follows the freeze.
func BenchmarkStep(b *testing.B) {
	s := NewSource(SourceParams{Host: "a", Target: "b", Epoch: 1}, Config{})
	now := origin
	for _, k := range []EventKind{Start, Leased, Accepted, Exported} {
		s.Step(now, Event{Kind: k})
	}
	b.ReportAllocs()
	for b.Loop() {
		s.state = SourceFreezing
		if got := s.Step(now, Event{Kind: Frozen}); len(got) != 1 {
			b.Fatal(got)
		}
	}
}
