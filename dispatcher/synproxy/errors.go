// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"

	"github.com/rehome-net/rehome/tcprepair"
)

// What callers can tell apart with errors.Is, beside package cookie's ErrPermission, ErrUnsupported and ErrAttached.
var (
	// ErrNoFlow: nothing is known of the flow, any more.
	ErrNoFlow = errors.New("no such request: it was decided, has ended, or came too long ago")
	// ErrNoNode: SetNode has not been called for it.
	ErrNoNode = errors.New("no such node: call SetNode first")
	// ErrClosed: Close was called.
	ErrClosed = errors.New("proxy is closed")
)

// OpError says which operation failed on which flow.
type OpError struct {
	Op   string         // such as "forward"
	Flow tcprepair.Flow // zero for operations on the proxy as a whole
	Err  error
}

func (e *OpError) Error() string {
	if e.Flow.IsValid() {
		return "synproxy: " + e.Op + " " + e.Flow.String() + ": " + e.Err.Error()
	}
	return "synproxy: " + e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
