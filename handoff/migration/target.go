// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// TargetState is where a Target stands.
//
//	Idle ─► Reserved ─► Restoring ─► Importing ─► Committing ─► Draining ─► Live
//	            │           │            │             │
//	            ▼           ▼            ▼             ▼
//	           Gone ◄───────┴────────────┴─────────────┘
//
// Draining is passed over when the source is lost, as it will send nothing that it held.
//
// Nothing of the connection can reach the client before Draining.
type TargetState uint8

// States of a Target. Live and Gone are final.
const (
	TargetIdle TargetState = iota
	TargetReserved
	TargetRestoring
	TargetImporting
	TargetCommitting
	TargetDraining
	TargetLive
	TargetGone
)

// String returns the state's name.
func (s TargetState) String() string {
	names := [...]string{"idle", "reserved", "restoring", "importing", "committing", "draining", "live", "gone"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Final reports whether nothing can happen any more.
func (s TargetState) Final() bool { return s >= TargetLive }

// Target is the receiving side of one migration (M-TCP M3).
type Target struct {
	cfg   Config
	host  string
	epoch uint32
	limit time.Duration

	state           TargetState
	alone           bool // the source is lost: nothing will come from it
	deadline, retry time.Time
	out             []Action
}

// TargetParams describes a connection that has been offered.
type TargetParams struct {
	// Host is the target's own name; Epoch is the flow's at the source.
	Host  string
	Epoch uint32
	// Limit is the source's, from its offer; Config.Limit when zero.
	Limit time.Duration
}

// NewTarget returns the target of an offer that Start accepts: what speaks against the offer has been checked before.
func NewTarget(p TargetParams, cfg Config) *Target {
	t := &Target{cfg: cfg.WithDefaults(), host: p.Host, epoch: p.Epoch, limit: p.Limit, out: make([]Action, 0, maxActions)}
	if t.limit <= 0 {
		t.limit = t.cfg.Limit
	}
	return t
}

// State returns where the target stands.
func (t *Target) State() TargetState { return t.state }

// Deadline returns when Tick is due; zero when nothing waits.
func (t *Target) Deadline() time.Time {
	if t.state == TargetCommitting && t.retry.Before(t.deadline) {
		return t.retry
	}
	return t.deadline
}

// Step takes in one event and returns what is to be done. The slice is valid until the next Step.
func (t *Target) Step(now time.Time, e Event) []Action {
	t.out = t.out[:0]
	e = e.withReason()
	switch t.state {
	case TargetIdle:
		if e.Kind == Start {
			t.state = TargetReserved
			t.deadline = now.Add(t.limit)
			t.do(Reserve)
		}
	case TargetReserved:
		t.reserved(now, e)
	case TargetRestoring, TargetImporting:
		t.importing(now, e)
	case TargetCommitting:
		t.committing(now, e)
	case TargetDraining:
		if e.Kind == HeldLast || e.Kind == PeerLost || e.Kind == Tick && !now.Before(t.deadline) {
			t.do(Release)
			t.finish(TargetLive, nil)
		}
	}
	return t.out
}

func (t *Target) reserved(now time.Time, e Event) {
	switch e.Kind {
	case StateSent:
		t.do(SendStored)
	case Transferred:
		t.state = TargetRestoring
		t.do(Restore)
	case Canceled:
		t.finish(TargetGone, e.Err)
	case PeerLost:
		t.finish(TargetGone, wrap(ErrPeerLost, e.Err))
	case ApplicationLost:
		t.refuse(wrap(ErrApplicationLost, e.Err))
	case EntryLost:
		// Nothing is frozen yet: better not to begin than to wait for the entry then.
		t.refuse(wrap(ErrEntryLost, e.Err))
	case Tick:
		if !now.Before(t.deadline) {
			t.refuse(ErrTimeout)
		}
	}
}

// importing goes on when the source is lost: everything is here, and the entry will say who owns the flow.
func (t *Target) importing(now time.Time, e Event) {
	switch e.Kind {
	case PeerLost:
		t.alone = true
	case Restored:
		t.state = TargetImporting
	case RestoreFailed:
		t.do(Release)
		t.refuse(e.Err)
	case Imported:
		t.state = TargetCommitting
		t.retry = now.Add(t.cfg.Retry)
		t.deadline = t.deadline.Add(t.cfg.Orphan)
		t.do(SendCommit)
	case ImportRefused:
		t.drop()
		t.refuse(e.Err)
	case ApplicationLost:
		t.drop()
		t.refuse(wrap(ErrApplicationLost, e.Err))
	case Canceled:
		t.withdraw(e.Err)
	case Tick:
		if !now.Before(t.deadline) {
			t.withdraw(ErrTimeout)
		}
	}
}

// withdraw gives up before the entry was asked.
func (t *Target) withdraw(err error) {
	t.out = append(t.out, Action{Verb: WithdrawApp, Err: err})
	t.drop()
	t.refuse(err)
}

func (t *Target) committing(now time.Time, e Event) {
	switch e.Kind {
	case PeerLost:
		t.alone = true
	case OwnerIs:
		if e.Owner.Host == t.host && e.Owner.Epoch == t.epoch+1 {
			t.live(now)
			return
		}
		t.withdraw(fmt.Errorf("%w: %v", ErrOwner, e.Owner))
	case Tick:
		switch {
		case !now.Before(t.deadline):
			// No promise to the source, as the entry may have said yes: it has to ask, too.
			t.out = append(t.out, Action{Verb: WithdrawApp, Err: ErrUnresolved})
			t.drop()
			t.finish(TargetGone, ErrUnresolved)
		case !now.Before(t.retry):
			t.retry = now.Add(t.cfg.Retry)
			t.do(SendCommit)
		}
	}
}

// live makes the connection the target's.
func (t *Target) live(now time.Time) {
	t.do(Thaw)
	t.do(ActivateApp)
	if t.alone {
		t.do(Release)
		t.finish(TargetLive, nil)
		return
	}
	t.do(SendCommitted)
	t.state = TargetDraining
	t.deadline = now.Add(t.cfg.HeldWait)
}

// drop ends the restored socket; held packets then go to the own stack, which answers them as it would any stray.
func (t *Target) drop() {
	t.do(Discard)
	t.do(Release)
}

func (t *Target) refuse(err error) {
	t.out = append(t.out, Action{Verb: SendRefuse, Err: err})
	t.finish(TargetGone, err)
}

func (t *Target) finish(state TargetState, err error) {
	t.state = state
	t.deadline = time.Time{}
	t.out = append(t.out, Action{Verb: Finish, Err: err})
}

func (t *Target) do(v Verb) { t.out = append(t.out, Action{Verb: v}) }
