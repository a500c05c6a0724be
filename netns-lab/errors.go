// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"errors"
	"strings"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrExists: a lab of that name stands already; take it down or choose another name.
	ErrExists = errors.New("lab exists")
	// ErrNotFound: no lab, or no host of the lab, has that name.
	ErrNotFound = errors.New("not found")
	// ErrClosed: the lab, element or capture was closed.
	ErrClosed = errors.New("closed")
	// ErrMismatch: a checked stream differs from what it should be.
	ErrMismatch = errors.New("stream differs")
)

// OpError says which step of which lab failed.
type OpError struct {
	// Op is what was being done, such as "build", "down" or "impair".
	Op string
	// Lab is the lab's name.
	Lab string
	// Host is the host concerned; empty for the whole lab.
	Host string
	// Err is the cause.
	Err error
}

func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	b.WriteString(" lab ")
	b.WriteString(e.Lab)
	if e.Host != "" {
		b.WriteString(" host ")
		b.WriteString(e.Host)
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

func (e *OpError) Unwrap() error { return e.Err }
