// SPDX-License-Identifier: Apache-2.0

package migration

import "fmt"

// Event is something that happened to one migration, at the source or at the target.
type Event struct {
	Kind EventKind
	// Err says why, for the events that tell of a refusal, a failure or a loss.
	Err error
	// Owner is the entry's answer, for OwnerIs.
	Owner Owner
	// Large is set with Exported when the State is too large to travel within the freeze.
	Large bool
}

// withReason returns the event with an error where one is needed: what is passed on to others must not be nil, which
// would say success.
func (e Event) withReason() Event {
	switch e.Kind {
	case Refused, LeaseRefused, ExportRefused, FreezeFailed, RestoreFailed, ImportRefused, Canceled, DeliveryFailed, Over:
		if e.Err == nil {
			e.Err = ErrNoReason
		}
	}
	return e
}

// Owner is who holds a flow according to its entry.
type Owner struct {
	Host  string
	Epoch uint32
	// Unknown is set when the entry has no such flow.
	Unknown bool
}

// String returns the owner as host/epoch.
func (o Owner) String() string {
	if o.Unknown {
		return "unknown"
	}
	return fmt.Sprintf("%s/%d", o.Host, o.Epoch)
}

// EventKind says what happened.
type EventKind uint8

// Events. S, T: at the source, at the target of a migration; G, K: at the Giver, at the Taker of a handoff.
const (
	Start           EventKind = iota + 1 // S T: first event
	Accepted                             // S: the target has reserved a place
	Refused                              // S: the target refuses and promises not to commit
	Leased                               // S: the entry grants the lease
	LeaseRefused                         // S: the entry does not
	Prepared                             // S: the application's State to send ahead is here (may be empty)
	Stored                               // S: the target has what was sent ahead
	Exported                             // S: the application has stopped; its State and socket are here
	ExportRefused                        // S: the application goes on serving
	Frozen                               // S: packets are held, the socket is frozen and its snapshot taken
	FreezeFailed                         // S: that failed; the socket is as it was
	Committed                            // S: the target says that the flow is its own
	StateSent                            // T: all that the source sends ahead is here
	Transferred                          // T: the frozen connection is here
	Restored                             // T: the socket is restored, still frozen, and offered to the application
	RestoreFailed                        // T: that failed; nothing is left of it
	Imported                             // T: the application has understood the State
	ImportRefused                        // T: the application has not
	HeldLast                             // T: the source has sent everything it had held
	OwnerIs                              // S T: the entry's answer to Abort and Commit
	PeerLost                             // S: no connection to the target; T: to the source
	EntryLost                            // S T: no connection to the entry
	ApplicationLost                      // S T: no connection to the application
	Canceled                             // S: the operator's abort; T: the source withdraws
	Tick                                 // S T: time has passed
	CommitAsked                          // G: the server asks for the flow
	CommitFailed                         // G: the flow table says no: it is no longer this connection
	CommitMade                           // G: the flow is the server's
	Delivered                            // K: the server has the connection
	DeliveryFailed                       // K: it has not, and nothing is left of it here
	Present                              // G: asked, the server's host says that it has the connection
	Absent                               // G: that it has not
	Over                                 // G K: the connection has ended in the server's hands, or may have: nobody may go on with it
)

// String returns the event's name as it stands in transcripts.
func (k EventKind) String() string {
	names := [...]string{
		"?", "start", "accepted", "refused", "leased", "lease-refused", "prepared", "stored", "exported", "export-refused",
		"frozen", "freeze-failed", "committed", "state-sent", "transferred", "restored", "restore-failed", "imported",
		"import-refused", "held-last", "owner", "peer-lost", "entry-lost", "application-lost", "canceled", "tick",
		"commit-asked", "commit-failed", "commit-made", "delivered", "delivery-failed", "present", "absent", "over",
	}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("event %d", uint8(k))
}

// maxActions is the largest number of actions that one event leads to.
const maxActions = 6

// Action is something the machine wants done. Actions are carried out in the order in which they are returned. Thaw,
// Release and Discard may come where there is nothing (any more) to thaw, to release or to discard: that is no error.
type Action struct {
	Verb Verb
	// Err says why, where something is refused or given up, and nil for a success.
	Err error
}

// Verb says what is to be done.
type Verb uint8

// Actions. S, T: of the source, of the target of a migration; G, K: of the Giver, of the Taker of a handoff.
const (
	SendOffer     Verb = iota + 1 // S: to the target
	SendLease                     // S: to the entry
	SendCancel                    // S: to the target
	SendAbort                     // S: to the entry; also when no connection stands: then as soon as one does
	AskPrepare                    // S: application, what can be sent ahead?
	SendAhead                     // S: the prepared State, then StateSent
	AskExport                     // S: application, stop and export
	SendState                     // S: the exported State ahead of the freeze, then StateSent
	Freeze                        // S: hold packets, freeze, take the snapshot; answer Frozen or FreezeFailed
	SendTransfer                  // S: the snapshot and the State
	Thaw                          // S: the frozen socket goes on; T: leave repair mode, the connection is live
	Release                       // S T: held packets to the own stack, in order; the gate is open again
	ResumeApp                     // S: application, go on as if nothing had happened
	Discard                       // S T: end the frozen socket silently
	SendHeld                      // S: the gate forwards from here on; what was held goes to the target
	TellMigrated                  // S: application, the connection is at its new host
	Reset                         // S: end the connection with a RST
	Reserve                       // T: answer Accept
	SendStored                    // T: answer StateStored
	Restore                       // T: hold the flow's packets here, restore the socket, offer it to the application
	SendCommit                    // T: to the entry; also when no connection stands: then as soon as one does
	WithdrawApp                   // T: application, forget the import
	SendRefuse                    // T: refuse, with the promise not to commit
	ActivateApp                   // T: application, the connection is yours
	SendCommitted                 // T: to the source
	Finish                        // all: it is over; Err is nil when the connection is at the target, or at the server
	SendHandoff                   // G: the connection to the server
	Grant                         // G: the flow is the server's from here on; answer CommitMade, or CommitFailed if it is no longer there
	Deny                          // G: tell the server that the flow is not its own
	TakeBack                      // G: it is the dispatcher's again, which has held the flow's packets all the time
	AskServer                     // G: the server's host, does it have the connection?
	Deliver                       // K: give the connection to the server; answer Delivered, DeliveryFailed or Over
	SendOver                      // K: the connection has ended, or may have
)

// String returns the action's name as it stands in transcripts.
func (v Verb) String() string {
	names := [...]string{
		"?", "send-offer", "send-lease", "send-cancel", "send-abort", "ask-prepare", "send-ahead", "ask-export", "send-state",
		"freeze", "send-transfer", "thaw", "release", "resume-app", "discard", "send-held", "tell-migrated", "reset",
		"reserve", "send-stored", "restore", "send-commit", "withdraw-app", "send-refuse", "activate-app", "send-committed", "finish",
		"send-handoff", "grant", "deny", "take-back", "ask-server", "deliver", "send-over",
	}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("verb %d", uint8(v))
}
