// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"time"
)

var (
	// ErrGone means that the flow in the table is no longer this connection: its client has opened a new one.
	ErrGone = errors.New("the client has given the connection up")
	// ErrSilent means that the host of a server which had been granted the flow could not be asked until the deadline.
	ErrSilent = errors.New("could not learn from the server's host whether it has the connection: the connection was ended")
)

// GiverState is where a Giver stands.
//
//	 in two steps      Refused, PeerLost, deadline: try another server
//	Idle ───────► Sent ────────────────────────────────────────► Back
//	 │ at once     │ CommitAsked                                  ▲
//	 ▼             ▼            Refused, Absent (taken back)      │
//	Granting ─► Granted ──────────────────────────────────────────┤
//	               │   │ PeerLost, deadline                       │
//	               │   ▼                                          │
//	               │ Asking ──────────────────────────────────────┘
//	               ▼   │ Present      deadline, Over ─► Lost
//	              Given◄
//
// In Idle, Sent and Back the connection is the dispatcher's, from Granted on the server's. The dispatcher holds the flow's packets
// until it knows that the server has the connection, or has it itself again.
type GiverState uint8

// States of a Giver. Back, Given and Lost are final.
const (
	GiverIdle GiverState = iota
	GiverGranting
	GiverSent
	GiverGranted
	GiverAsking
	GiverBack
	GiverGiven
	GiverLost
)

// String returns the state's name.
func (s GiverState) String() string {
	names := [...]string{"idle", "granting", "sent", "granted", "asking", "back", "given", "lost"}
	return names[min(int(s), len(names)-1)]
}

// Final reports whether nothing can happen any more.
func (s GiverState) Final() bool { return s >= GiverBack }

// Giver is the dispatcher's side of one attempt to hand an accepted connection to a server (NEC N2). The dispatcher is the flow's
// entry, too: the flow is its own until it grants the server's Commit, so that a server that is gone, slow or unwilling costs the
// client time at most.
//
// In two steps the server has to ask for the flow, and until then a server that is silent can be passed over. At once saves the time of
// that question: the flow is granted before the server knows of it. A server that falls silent then leaves open whether it has the
// connection; so that is for servers that have just been heard of.
type Giver struct {
	limit, grace    time.Duration
	atOnce          bool
	state           GiverState
	deadline, retry time.Time
	cause           error
	out             []Action
}

// askAgain is the time between two questions to a host that may have taken a connection and did not say so.
const askAgain = 100 * time.Millisecond

// NewGiver returns an attempt that waits for the server for limit, and for the answer of a server that has been granted the flow
// for another grace. Both are counted from Start, so that the client's packets have to be held for their sum; a server that is sent
// the connection late may ask for it until limit after that, so grace must be longer than any frame is under way.
func NewGiver(limit, grace time.Duration, atOnce bool) *Giver {
	return &Giver{limit: limit, grace: grace, atOnce: atOnce, out: make([]Action, 0, maxActions)}
}

// State returns where the attempt stands.
func (g *Giver) State() GiverState { return g.state }

// Deadline returns when Tick is due; zero when nothing waits.
func (g *Giver) Deadline() time.Time {
	if g.state == GiverAsking && g.retry.Before(g.deadline) {
		return g.retry
	}
	return g.deadline
}

// Step takes in one event and returns what is to be done. The slice is valid until the next Step.
func (g *Giver) Step(now time.Time, e Event) []Action {
	g.out = g.out[:0]
	e = e.withReason()
	switch g.state {
	case GiverIdle:
		if e.Kind != Start {
			break
		}
		if g.atOnce {
			g.state = GiverGranting
			g.do(Grant)
			break
		}
		g.state, g.deadline = GiverSent, now.Add(g.limit)
		g.do(SendHandoff)
	case GiverGranting:
		switch e.Kind {
		case CommitMade:
			g.state, g.deadline = GiverGranted, now.Add(g.limit)
			g.do(SendHandoff)
		case CommitFailed:
			g.finish(GiverLost, wrap(ErrGone, e.Err))
		}
	case GiverSent:
		g.sent(now, e)
	case GiverGranted, GiverAsking:
		g.granted(now, e)
	default:
		if e.Kind == CommitAsked {
			g.do(Deny)
		}
	}
	return g.out
}

func (g *Giver) sent(now time.Time, e Event) {
	switch e.Kind {
	case CommitAsked:
		g.state = GiverGranted
		g.do(Grant)
	case Refused:
		g.finish(GiverBack, e.Err)
	case PeerLost:
		g.finish(GiverBack, wrap(ErrPeerLost, e.Err))
	case Tick:
		if !now.Before(g.deadline) {
			g.out = append(g.out, Action{Verb: SendCancel, Err: ErrTimeout})
			g.finish(GiverBack, ErrTimeout)
		}
	}
}

// granted: the flow is the server's, and only the server's host can give it back.
func (g *Giver) granted(now time.Time, e Event) {
	switch e.Kind {
	case CommitAsked: // again: the answer was lost
		g.do(Grant)
	case CommitFailed:
		g.do(Deny)
		g.finish(GiverLost, wrap(ErrGone, e.Err))
	case Committed, Present:
		g.do(Discard)
		g.finish(GiverGiven, nil)
	case Refused:
		g.takeBack(e.Err)
	case Over:
		g.do(Reset)
		g.finish(GiverLost, e.Err)
	case Absent:
		if g.state == GiverAsking { // else nobody has asked
			g.takeBack(g.cause)
		}
	case PeerLost:
		g.ask(now, wrap(ErrPeerLost, e.Err))
	case Tick:
		switch {
		case g.state == GiverGranted && !now.Before(g.deadline):
			g.ask(now, ErrTimeout)
		case g.state == GiverAsking && !now.Before(g.deadline):
			g.do(Reset)
			g.finish(GiverLost, wrap(ErrSilent, g.cause))
		case g.state == GiverAsking && !now.Before(g.retry):
			g.retry = now.Add(askAgain)
			g.do(AskServer)
		}
	}
}

func (g *Giver) ask(now time.Time, cause error) {
	if g.state == GiverAsking {
		return // the question waits for the next connection
	}
	g.state, g.cause = GiverAsking, cause
	if g.deadline.Before(now) {
		g.deadline = now
	}
	// The grace begins when the server, too, has given up asking for the flow.
	g.deadline, g.retry = g.deadline.Add(g.grace), now.Add(askAgain)
	g.do(AskServer)
}

func (g *Giver) takeBack(err error) {
	g.do(TakeBack)
	g.finish(GiverBack, err)
}

func (g *Giver) finish(state GiverState, err error) {
	g.state, g.deadline = state, time.Time{}
	g.out = append(g.out, Action{Verb: Finish, Err: err})
}

func (g *Giver) do(v Verb) { g.out = append(g.out, Action{Verb: v}) }
