// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// What callers can tell apart with errors.Is. Each is also the gate's error of the same name, so that one caller can drive
// either; ErrNoFlow, ErrEpoch, ErrExists and ErrBusy are the gate's own.
var (
	ErrFull        error = &sentinel{"no room for the flow in the table: raise MaxFlows", gate.ErrFull}
	ErrClosed      error = &sentinel{"forwarder is closed", gate.ErrClosed}
	ErrPermission        = gate.ErrPermission
	ErrUnsupported error = &sentinel{"not supported by this kernel: needs Linux 6.6 with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS", gate.ErrUnsupported}
	ErrLayout      error = errors.New("the pinned tables are of another version of rehome: end its flows and remove its files")
	ErrNotDiverted error = errors.New("the forwarder was opened without Config.Divert")
	ErrAttached    error = &sentinel{"another forwarder is attached to the interface: stop its dispatcher, or remove what it left pinned", gate.ErrAttached}
)

// sentinel is an error of the gate's in words of this package.
type sentinel struct {
	text string
	gate error
}

func (s *sentinel) Error() string { return s.text }

// Unwrap returns the gate's error.
func (s *sentinel) Unwrap() error { return s.gate }

// OpError says which operation failed on which flow.
type OpError struct {
	Op   string         // such as "commit"
	Flow tcprepair.Flow // zero for operations on the forwarder as a whole
	Err  error
}

func (e *OpError) Error() string {
	if e.Flow.IsValid() {
		return "forward: " + e.Op + " " + e.Flow.String() + ": " + e.Err.Error()
	}
	return "forward: " + e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
