// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// TakerState is where a Taker stands.
//
//	Idle ─► Restoring ─► Asking ─► Delivering ─► Taken
//	            │           │          │
//	            └───────────┴──────────┴───────► Refusing
//
// Nothing of the connection can reach the client before Delivering.
type TakerState uint8

// States of a Taker. Taken and Refusing are final.
const (
	TakerIdle TakerState = iota
	TakerRestoring
	TakerAsking
	TakerDelivering
	TakerTaken
	TakerRefusing
)

// String returns the state's name.
func (s TakerState) String() string {
	names := [...]string{"idle", "restoring", "asking", "delivering", "taken", "refusing"}
	return names[min(int(s), len(names)-1)]
}

// Final reports whether nothing can happen any more.
func (s TakerState) Final() bool { return s >= TakerTaken }

// Taker is the server's side of one handoff: its host's agent. There is no State and no application to ask: what can speak against
// the connection is found before the flow is asked for.
type Taker struct {
	cfg             Config
	host            string
	epoch           uint32
	limit           time.Duration
	granted         bool
	state           TakerState
	until           time.Time // how long to ask for the flow
	deadline, retry time.Time
	out             []Action
}

// NewTaker returns the taker of a connection whose flow was at p.Epoch when the dispatcher sent it, and has been granted already or not.
func NewTaker(p TargetParams, granted bool, cfg Config) *Taker {
	t := &Taker{
		cfg: cfg.WithDefaults(), host: p.Host, epoch: p.Epoch, limit: p.Limit, granted: granted, out: make([]Action, 0, maxActions),
	}
	if t.limit <= 0 {
		t.limit = t.cfg.Limit
	}
	return t
}

// State returns where the taker stands.
func (t *Taker) State() TakerState { return t.state }

// Deadline returns when Tick is due; zero when nothing waits.
func (t *Taker) Deadline() time.Time {
	if t.state == TakerAsking && t.retry.Before(t.deadline) {
		return t.retry
	}
	return t.deadline
}

// Step takes in one event and returns what is to be done. The slice is valid until the next Step.
func (t *Taker) Step(now time.Time, e Event) []Action {
	t.out = t.out[:0]
	e = e.withReason()
	switch t.state {
	case TakerIdle:
		if e.Kind == Start {
			// Not for longer: the dispatcher, which then goes on asking for its grace, is to hear in time that it can have the flow back.
			t.state, t.until = TakerRestoring, now.Add(t.limit)
			t.do(Restore)
		}
	case TakerRestoring:
		switch e.Kind {
		case Restored:
			if t.granted {
				t.state = TakerDelivering
				t.do(Deliver)
				break
			}
			t.state, t.retry = TakerAsking, now.Add(t.cfg.Retry)
			t.deadline = t.until
			t.do(SendCommit)
		case RestoreFailed:
			t.refuse(e.Err)
		}
	case TakerAsking:
		t.asking(now, e)
	case TakerDelivering:
		switch e.Kind {
		case Delivered:
			t.do(SendCommitted)
			t.finish(TakerTaken, nil)
		case DeliveryFailed:
			t.drop(e.Err)
		case Over:
			t.out = append(t.out, Action{Verb: SendOver, Err: e.Err})
			t.finish(TakerRefusing, e.Err)
		}
	}
	return t.out
}

// asking goes on when the dispatcher's connection is lost: it may have granted the flow before.
func (t *Taker) asking(now time.Time, e Event) {
	switch e.Kind {
	case OwnerIs:
		if e.Owner.Host != t.host || e.Owner.Epoch != t.epoch+1 {
			t.drop(fmt.Errorf("%w: %v", ErrOwner, e.Owner))
			return
		}
		t.state, t.deadline = TakerDelivering, time.Time{}
		t.do(Deliver)
	case Canceled:
		t.drop(e.Err)
	case Tick:
		switch {
		case !now.Before(t.deadline):
			t.drop(fmt.Errorf("%w: the dispatcher did not answer", ErrTimeout))
		case !now.Before(t.retry):
			t.retry = now.Add(t.cfg.Retry)
			t.do(SendCommit)
		}
	}
}

func (t *Taker) drop(err error) {
	t.do(Discard)
	t.refuse(err)
}

func (t *Taker) refuse(err error) {
	t.out = append(t.out, Action{Verb: SendRefuse, Err: err})
	t.finish(TakerRefusing, err)
}

func (t *Taker) finish(state TakerState, err error) {
	t.state, t.deadline = state, time.Time{}
	t.out = append(t.out, Action{Verb: Finish, Err: err})
}

func (t *Taker) do(v Verb) { t.out = append(t.out, Action{Verb: v}) }
