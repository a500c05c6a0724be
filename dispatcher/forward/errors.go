// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// What callers can tell apart with errors.Is, beside the gate's: ErrNoFlow, ErrEpoch, ErrExists and ErrBusy mean here what
// they mean there. Those below are the gate's too, in words that fit.
var (
	ErrFull        = fmt.Errorf("no room in the flow table: raise MaxFlows: %w", gate.ErrFull)
	ErrClosed      = fmt.Errorf("forwarder is closed: %w", gate.ErrClosed)
	ErrPermission  = gate.ErrPermission
	ErrUnsupported = fmt.Errorf("%w: needs Linux 6.6 with CONFIG_BPF_SYSCALL and CONFIG_NET_XGRESS", errors.ErrUnsupported)
	ErrAttached    = fmt.Errorf("another forwarder is attached to the interface: stop its dispatcher, or remove what it left pinned: %w", gate.ErrAttached)
)

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
