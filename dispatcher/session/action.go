// SPDX-License-Identifier: Apache-2.0

package session

import "fmt"

// Action is something that the caller must do.
type Action struct {
	Kind    ActionKind
	Key     Key // of Install and Remove; a port of 0 means any
	Session ID
	Server  Server
	// Identity is the flow's, of Install and Remove: signalling is inspected, an announced flow is not there yet.
	Identity Identity
}

// ActionKind says what to do.
type ActionKind uint8

// Kinds of actions.
const (
	// Install has the forwarder send the flow to the server, in place of what it did with the flow before.
	Install ActionKind = iota
	// Remove has the forwarder forget the flow.
	Remove
	// Over says that the session has no flow any more: it no longer counts for its server. Its ID is not used again.
	Over
)

func (k ActionKind) String() string {
	switch k {
	case Install:
		return "install"
	case Remove:
		return "remove"
	case Over:
		return "over"
	}
	return fmt.Sprintf("action %d", uint8(k))
}

func (a Action) String() string {
	if a.Kind == Over {
		return fmt.Sprintf("over %v on server %d", a.Session, a.Server)
	}
	return fmt.Sprintf("%v %v %v of %v on server %d", a.Kind, a.Identity, a.Key, a.Session, a.Server)
}
