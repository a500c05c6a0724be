// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// SourceState is where a Source stands.
//
//	Serving ─► Offered ─► Preparing ─► Exporting ─► Storing ─► Freezing ─► Sent ─► Moved
//	              │           │            │           │           │         │
//	              │           │            │           │           │         ├─► Resolving ─► Moved
//	              ▼           ▼            ▼           ▼           ▼         ▼        │
//	           Resumed ◄──────┴────────────┴───────────┴───────────┴─────────┴────────┤
//	                                                                          Lost ◄──┘
//
// Preparing and Storing are passed over where there is nothing to send ahead. Until Sent, every failure leads back to a
// connection that goes on; from Sent on, only the target's refusal or the entry's word does.
type SourceState uint8

// States of a Source. Moved, Resumed and Lost are final.
const (
	SourceServing SourceState = iota
	SourceOffered
	SourcePreparing
	SourceExporting
	SourceStoring
	SourceFreezing
	SourceSent
	SourceResolving
	SourceMoved
	SourceResumed
	SourceLost
)

// String returns the state's name.
func (s SourceState) String() string {
	names := [...]string{
		"serving", "offered", "preparing", "exporting", "storing", "freezing", "sent", "resolving", "moved", "resumed", "lost",
	}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Final reports whether nothing can happen any more.
func (s SourceState) Final() bool { return s >= SourceMoved }

// Source is the giving side of one migration (M-TCP M1, M3: where M-TCP calls a failed reincarnation a service failure,
// this source resumes).
type Source struct {
	cfg    Config
	host   string
	target string
	epoch  uint32
	ahead  bool

	state            SourceState
	accepted, leased bool
	cause            error
	deadline, retry  time.Time
	out              []Action
}

// SourceParams describes a connection that is to move.
type SourceParams struct {
	// Host and Target are the names of the two hosts; Epoch is the flow's at Host.
	Host, Target string
	Epoch        uint32
	// Ahead asks the application for State to send ahead (its Register.Preparer).
	Ahead bool
}

// NewSource returns the source of a move that Start begins.
func NewSource(p SourceParams, cfg Config) *Source {
	return &Source{
		cfg: cfg.WithDefaults(), host: p.Host, target: p.Target, epoch: p.Epoch, ahead: p.Ahead, out: make([]Action, 0, maxActions),
	}
}

// State returns where the source stands.
func (s *Source) State() SourceState { return s.state }

// Deadline returns when Tick is due; zero when nothing waits.
func (s *Source) Deadline() time.Time {
	if s.state == SourceResolving && s.retry.Before(s.deadline) {
		return s.retry
	}
	return s.deadline
}

// Step takes in one event and returns what is to be done. The slice is valid until the next Step.
func (s *Source) Step(now time.Time, e Event) []Action {
	s.out = s.out[:0]
	e = e.withReason()
	if s.state.Final() {
		return nil
	}
	switch s.state {
	case SourceServing:
		if e.Kind == Start {
			s.state = SourceOffered
			s.deadline = now.Add(s.cfg.Limit)
			s.do(SendOffer)
			s.do(SendLease)
		}
	case SourceSent:
		s.sent(now, e)
	case SourceResolving:
		s.resolving(now, e)
	default:
		if err := s.failure(now, e); err != nil {
			s.fail(e, err)
			break
		}
		s.advance(e)
	}
	return s.out
}

// advance is the way forward, up to the transfer.
func (s *Source) advance(e Event) {
	switch {
	case s.state == SourceOffered && (e.Kind == Accepted || e.Kind == Leased):
		s.accepted = s.accepted || e.Kind == Accepted
		s.leased = s.leased || e.Kind == Leased
		switch {
		case !s.accepted || !s.leased:
		case s.ahead:
			s.state = SourcePreparing
			s.do(AskPrepare)
		default:
			s.export()
		}
	case s.state == SourcePreparing && e.Kind == Prepared:
		s.do(SendAhead)
	case s.state == SourcePreparing && e.Kind == Stored:
		s.export()
	case s.state == SourceExporting && e.Kind == Exported && e.Large:
		s.state = SourceStoring
		s.do(SendState)
	case s.state == SourceExporting && e.Kind == Exported,
		s.state == SourceStoring && e.Kind == Stored:
		s.state = SourceFreezing
		s.do(Freeze)
	case s.state == SourceFreezing && e.Kind == Frozen:
		s.state = SourceSent
		s.do(SendTransfer)
	}
}

func (s *Source) export() {
	s.state = SourceExporting
	s.do(AskExport)
}

// failure returns why the move must be given up before anything was transferred, nil if it goes on.
func (s *Source) failure(now time.Time, e Event) error {
	switch e.Kind {
	case Refused, LeaseRefused, Canceled, FreezeFailed:
		return e.Err
	case ExportRefused:
		if s.state == SourceExporting || s.state == SourcePreparing {
			return e.Err
		}
	case PeerLost:
		return wrap(ErrPeerLost, e.Err)
	case EntryLost:
		return wrap(ErrEntryLost, e.Err)
	case ApplicationLost:
		// What it exported is here, with its socket: the move is then the connection's best chance.
		if s.state < SourceStoring {
			return wrap(ErrApplicationLost, e.Err)
		}
	case Tick:
		if !now.Before(s.deadline) {
			return ErrTimeout
		}
	}
	return nil
}

// fail gives a move up that has transferred nothing.
func (s *Source) fail(e Event, err error) {
	s.cause = err
	if e.Kind != Refused && e.Kind != PeerLost {
		s.out = append(s.out, Action{Verb: SendCancel, Err: err})
	}
	if e.Kind != LeaseRefused {
		s.do(SendAbort) // also when the entry is lost: a lease that stands would be in the next try's way
	}
	if s.state == SourceFreezing && e.Kind != FreezeFailed {
		// The freeze has been carried out; only its answer has not been seen.
		s.do(Thaw)
		s.do(Release)
	}
	if s.state >= SourceExporting && e.Kind != ExportRefused && e.Kind != ApplicationLost {
		s.out = append(s.out, Action{Verb: ResumeApp, Err: err})
	}
	s.finish(SourceResumed, err)
}

// sent handles what happens after the transfer: the connection is between two owners.
func (s *Source) sent(now time.Time, e Event) {
	switch e.Kind {
	case Committed:
		s.moved()
	case Refused:
		s.do(SendAbort)
		s.resume(e.Err)
	case PeerLost:
		s.resolve(now, wrap(ErrPeerLost, e.Err))
	case Canceled:
		s.resolve(now, e.Err)
	case Tick:
		if !now.Before(s.deadline) {
			s.resolve(now, ErrTimeout)
		}
	}
}

// resolve fences the target off at the entry.
func (s *Source) resolve(now time.Time, cause error) {
	s.state = SourceResolving
	s.cause = cause
	s.retry = now.Add(s.cfg.Retry)
	if limit := now.Add(s.cfg.Grace); limit.After(s.deadline) {
		s.deadline = limit
	}
	s.do(SendAbort)
}

func (s *Source) resolving(now time.Time, e Event) {
	switch e.Kind {
	case Committed:
		s.moved()
	case Refused:
		s.do(SendAbort)
		s.resume(s.cause)
	case OwnerIs:
		switch {
		case !e.Owner.Unknown && e.Owner.Epoch > s.epoch:
			// The target's, or already that of a host to which the target has moved it on: a RST would hit it there.
			s.moved()
		case e.Owner.Host == s.host && e.Owner.Epoch == s.epoch:
			s.resume(s.cause)
		default:
			// The flow at the entry is no longer this connection: its client has opened a new one, or closed it.
			s.lose(fmt.Errorf("%w: %v (after: %w)", ErrOwner, e.Owner, s.cause))
		}
	case Tick, EntryLost:
		switch {
		case !now.Before(s.deadline):
			s.lose(fmt.Errorf("%w (after: %w)", ErrUnresolved, s.cause))
		case e.Kind == Tick && !now.Before(s.retry):
			s.retry = now.Add(s.cfg.Retry)
			s.do(SendAbort)
		}
	}
}

func (s *Source) moved() {
	s.do(Discard)
	s.do(SendHeld)
	s.do(TellMigrated)
	s.finish(SourceMoved, nil)
}

func (s *Source) resume(err error) {
	s.do(Thaw)
	s.do(Release)
	s.out = append(s.out, Action{Verb: ResumeApp, Err: err})
	s.finish(SourceResumed, err)
}

func (s *Source) lose(err error) {
	s.do(Reset)
	s.do(Release)
	s.do(TellMigrated)
	s.finish(SourceLost, err)
}

func (s *Source) finish(state SourceState, err error) {
	s.state = state
	s.deadline = time.Time{}
	s.out = append(s.out, Action{Verb: Finish, Err: err})
}

func (s *Source) do(v Verb) { s.out = append(s.out, Action{Verb: v}) }

// wrap adds detail to a sentinel.
func wrap(sentinel, detail error) error {
	if detail == nil {
		return sentinel
	}
	return fmt.Errorf("%w: %w", sentinel, detail)
}
