// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
)

// What callers can tell apart with errors.Is.
var (
	// ErrMissing means that there is no CRIU to run.
	ErrMissing = errors.New("no CRIU on this host: install criu 4.2 or newer, or give its path as process.criu in the agent's configuration")
	// ErrTooOld means that the CRIU found cannot move connections on today's kernels.
	ErrTooOld = errors.New("this CRIU is too old: 4.2 or newer is needed, older ones cannot read TCP sockets of Linux 6.16 and later")
	// ErrGone means that CRIU ended without an answer.
	ErrGone = errors.New("CRIU ended without an answer")
	// ErrAborted means that a hook ended the operation: what was stopped goes on, what was restored is gone.
	ErrAborted = errors.New("given up")
	// ErrImage means that an image did not arrive as it was sent.
	ErrImage = errors.New("the image is damaged")
	// ErrFull means that the store for images has no room.
	ErrFull = errors.New("no room for the image: raise process.image_bytes, or free memory")
	// ErrMemory means that memory which was to follow a restored tree cannot be had.
	ErrMemory = errors.New("the memory of the process cannot be had")
	// ErrMayHaveRun means that a restored tree ended when nothing kept it from running any more: what it has said cannot be unsaid, so that its
	// original must not go on.
	ErrMayHaveRun = errors.New("the restored process may have run before it ended")
	// ErrNotLazy means that memory cannot follow a tree here.
	ErrNotLazy = errors.New("memory cannot follow a process here (--lazy): the kernel needs CONFIG_USERFAULTFD=y, and the agent CAP_SYS_PTRACE")
	// ErrNoProcess means that there is no such process.
	ErrNoProcess = errors.New("no such process")
	// ErrNotMovable means that a process cannot be moved as it is.
	ErrNotMovable = errors.New("the process cannot be moved")
)

// OpError says what failed.
type OpError struct {
	// Op is what was done, such as "dump".
	Op string
	// Reason is the end of CRIU's own log, if it says more.
	Reason string
	Err    error
}

// Error implements error.
func (e *OpError) Error() string {
	s := fmt.Sprintf("criu %s: %v", e.Op, e.Err)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	return s
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
