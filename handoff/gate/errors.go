// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"

	"github.com/rehome-net/rehome/tcprepair"
)

// What callers can tell apart with errors.Is.
var (
	ErrNoFlow      = errors.New("flow unknown to this gate")
	ErrEpoch       = errors.New("owner has changed meanwhile")
	ErrExists      = fmt.Errorf("flow has an owner already: %w", ErrEpoch)
	ErrFull        = errors.New("flow table full: raise MaxFlows")
	ErrBusy        = errors.New("entry is being changed, try again")
	ErrFrame       = errors.New("frame is not a TCP segment of the flow")
	ErrClosed      = errors.New("gate is closed")
	ErrPermission  = errors.New("not permitted: needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
	ErrUnsupported = errors.New("not supported by this kernel: needs Linux 5.17 with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_TUN")
	ErrAttached    = errors.New("another gate is attached to the interface: stop its agent, or remove what it left pinned")
)

// OpError says which operation failed on which flow.
type OpError struct {
	Op   string         // such as "hold"
	Flow tcprepair.Flow // zero for operations on the gate as a whole
	Err  error
}

func (e *OpError) Error() string {
	if e.Flow.IsValid() {
		return "gate: " + e.Op + " " + e.Flow.String() + ": " + e.Err.Error()
	}
	return "gate: " + e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
