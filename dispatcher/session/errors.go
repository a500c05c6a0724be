// SPDX-License-Identifier: Apache-2.0

package session

import (
	"errors"
	"fmt"
)

// What callers can tell apart with errors.Is.
var (
	ErrKey         = errors.New("not a flow: want TCP or UDP between two addresses of one IP version, with ports; of an announced flow one port may be 0")
	ErrKnown       = errors.New("flow is known: Touch it, or End it first if its ports are used anew")
	ErrNoSession   = errors.New("no such session, or over")
	ErrName        = errors.New("a session's name must not be empty")
	ErrTimeout     = errors.New("outside the range")
	ErrConflict    = errors.New("promised to a session on another server")
	ErrFull        = errors.New("session table is full: raise MaxFlows")
	ErrClientFull  = errors.New("client has too many flows: raise MaxPerClient if that is right for it")
	ErrSessionFull = errors.New("session has too many flows or names: withdraw some, or raise MaxAnnounced, MaxSignalling or MaxNames")
)

// OpError says which operation was refused, on which flow.
type OpError struct {
	Op  string // such as "announce"
	Key Key    // zero if it was not about one flow
	Err error
}

func (e *OpError) Error() string {
	if e.Key == (Key{}) {
		return "session: " + e.Op + ": " + e.Err.Error()
	}
	return "session: " + e.Op + " " + e.Key.String() + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

// ConflictError says whom a flow or name belongs to that a session on another server asks for. It is ErrConflict.
type ConflictError struct {
	Session ID
	Server  Server
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v: %v on server %d", ErrConflict, e.Session, e.Server)
}

// Is reports whether target is ErrConflict.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }
