// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"testing"
	"time"
)

// FuzzMachines feeds the machines whatever the fuzzer comes up with: four bytes are one event and the time before it.
// Nothing may make them panic, act after the end, finish twice, or leave a tick's deadline in the past; and neither may
// say two things that exclude one another.
func FuzzMachines(f *testing.F) {
	straight := []EventKind{Start, Accepted, Leased, Exported, Frozen, Committed, Transferred, Restored, Imported, OwnerIs, HeldLast}
	var seed []byte
	for _, k := range straight {
		seed = append(seed, byte(k), 1, 1, 2)
	}
	f.Add(false, seed)
	f.Add(true, seed)
	f.Add(true, []byte{byte(Start), 0, 0, 0, byte(Tick), 200, 0, 0, byte(Tick), 200, 0, 0})
	given := []byte{byte(Start), 0, 0, 0, byte(CommitAsked), 1, 0, 0, byte(PeerLost), 1, 0, 0, byte(Tick), 2, 0, 0}
	f.Add(false, append(given, byte(Present), 0, 0, 0))
	f.Add(false, append(given, byte(Absent), 0, 0, 0))
	f.Add(true, []byte{byte(Start), 0, 0, 0, byte(Restored), 1, 0, 0, byte(OwnerIs), 1, 1, 2, byte(DeliveryFailed), 1, 0, 0})
	f.Add(false, []byte{byte(Start), 0, 0, 0, byte(PeerLost), 1, 0, 0, byte(Start), 1, 0, 0})
	f.Fuzz(func(t *testing.T, ahead bool, script []byte) {
		source := NewSource(SourceParams{Host: "a", Target: "b", Epoch: 1, Ahead: ahead}, Config{})
		target := NewTarget(TargetParams{Host: "b", Epoch: 1}, Config{})
		recoveredSource, first := RecoverSource(origin, SourceParams{Host: "a", Epoch: 1}, Config{})
		if len(first) != 1 || first[0].Verb != SendAbort {
			t.Fatalf("a recovered source begins with %v", first)
		}
		recoveredTarget, _ := RecoverTarget(origin, TargetParams{Host: "b", Epoch: 1}, Config{})
		feed(t, "source", source, script)
		feed(t, "target", target, script)
		feed(t, "recovered source", recoveredSource, script)
		feed(t, "recovered target", recoveredTarget, script)
		feed(t, "giver", NewGiver(time.Second, 3*time.Second, ahead), script)
		feed(t, "taker", NewTaker(TargetParams{Host: "b", Epoch: 1, Limit: time.Second}, ahead, Config{}), script)
	})
}

func feed(t *testing.T, name string, m machine, script []byte) {
	t.Helper()
	now := origin
	finished := false
	did := make(map[Verb]int)
	var lastErr error
	for len(script) >= 4 {
		now = now.Add(time.Duration(script[1]) * 50 * time.Millisecond)
		e := Event{Kind: EventKind(script[0] % byte(Over+2)), Large: script[2]&1 != 0}
		e.Owner = Owner{Host: string('a' + rune(script[2]%4)), Epoch: uint32(script[3] % 4), Unknown: script[2]&64 != 0}
		if script[3]&128 != 0 {
			e.Err = errors.New("why")
		}
		script = script[4:]
		actions := m.Step(now, e)
		if finished && len(actions) == 1 && actions[0].Verb == Deny {
			continue // to whoever still asks
		}
		if finished && len(actions) > 0 {
			t.Fatalf("%s: %v after the end led to %v", name, e.Kind, actions)
		}
		if len(actions) > maxActions {
			t.Fatalf("%s: %d actions at once, maxActions is %d", name, len(actions), maxActions)
		}
		for i, a := range actions {
			did[a.Verb]++
			lastErr = a.Err
			if a.Verb.String() == "?" {
				t.Fatalf("%s: no verb", name)
			}
			switch a.Verb {
			case SendCancel, ResumeApp, WithdrawApp, SendRefuse, SendOver:
				if a.Err == nil {
					t.Fatalf("%s: %v without a reason, after %v", name, a.Verb, e.Kind)
				}
			}
			finished = finished || a.Verb == Finish
			if finished != (a.Verb == Finish) || a.Verb == Finish && i != len(actions)-1 {
				t.Fatalf("%s: %v is not the last of %v", name, a.Verb, actions)
			}
		}
		d := m.Deadline()
		if finished && !d.IsZero() {
			t.Fatalf("%s: a deadline after the end", name)
		}
		if e.Kind == Tick && !d.IsZero() && !d.After(now) {
			t.Fatalf("%s: a tick left a deadline that has passed", name)
		}
	}
	ends := did[Reset] + did[Discard] + did[Thaw] + did[TakeBack]
	if name != "target" && name != "recovered target" && ends > 1 {
		t.Fatalf("%s: thawed %d, discarded %d, reset %d", name, did[Thaw], did[Discard], did[Reset])
	}
	if s, ok := m.(*Source); ok && finished && (lastErr == nil) != (s.State() == SourceMoved) {
		t.Fatalf("%s: ended as %v with error %v", name, s.State(), lastErr)
	}
	if s, ok := m.(*Target); ok && finished && (lastErr == nil) != (s.State() == TargetLive) {
		t.Fatalf("%s: ended as %v with error %v", name, s.State(), lastErr)
	}
	if g, ok := m.(*Giver); ok && finished && (lastErr == nil) != (g.State() == GiverGiven) {
		t.Fatalf("%s: ended as %v with error %v", name, g.State(), lastErr)
	}
	if k, ok := m.(*Taker); ok && finished && (lastErr == nil) != (k.State() == TakerTaken) {
		t.Fatalf("%s: ended as %v with error %v", name, k.State(), lastErr)
	}
	if did[Thaw] > 0 && did[Discard] > 0 || did[SendCommitted]+did[SendOver] > 0 && did[SendRefuse] > 0 || did[SendOver] > 0 && did[Discard] > 0 || did[Finish] > 1 {
		t.Fatalf("%s: %v", name, did)
	}
}

// TestConfig checks that the gate's hold outlasts the lease, whatever the two clocks do within 1 %.
func TestConfig(t *testing.T) {
	for _, limit := range []time.Duration{0, time.Millisecond, 10 * time.Second, MaxLease} {
		c := Config{Limit: limit}.WithDefaults()
		hold, lease := c.HoldTTL()*100/101, c.Limit*100/99
		if hold <= lease {
			t.Errorf("limit %v: the gate may hold only %v while the lease may last %v", c.Limit, hold, lease)
		}
		if c.Orphan <= c.Grace {
			t.Errorf("a target must ask for longer than a source: %v, %v", c.Orphan, c.Grace)
		}
	}
	set := Config{Limit: 1, Grace: 2, Orphan: 3, Retry: 4, HeldWait: 5}
	if got := set.WithDefaults(); got != set {
		t.Errorf("set values have changed: %+v", got)
	}
}

// TestNames checks that every event, verb and state has a name of its own, in transcripts and logs.
func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	unique := func(kind, name string) {
		t.Helper()
		if name == "" || name == "?" || seen[kind+name] {
			t.Errorf("%s %q is no name, or not the only one", kind, name)
		}
		seen[kind+name] = true
	}
	for k := Start; k <= Over+1; k++ {
		unique("event", k.String())
	}
	for v := SendOffer; v <= SendOver+1; v++ {
		unique("verb", v.String())
	}
	for s := SourceServing; s <= SourceLost+1; s++ {
		unique("source", s.String())
	}
	for s := TargetIdle; s <= TargetGone+1; s++ {
		unique("target", s.String())
	}
	for s := GiverIdle; s <= GiverLost; s++ {
		unique("giver", s.String())
	}
	for s := TakerIdle; s <= TakerRefusing; s++ {
		unique("taker", s.String())
	}
	if got := (Owner{Host: "a", Epoch: 7}).String() + " " + (Owner{Unknown: true}).String(); got != "a/7 unknown" {
		t.Errorf("owners are %q", got)
	}
}
