// SPDX-License-Identifier: Apache-2.0

package gateway

import "errors"

// What callers can tell apart with errors.Is.
var (
	ErrPermission  = errors.New("not permitted: needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
	ErrUnsupported = errors.New("not supported by this kernel: needs Linux 6.6 with CONFIG_BPF_SYSCALL, CONFIG_NET_XGRESS and CONFIG_TUN")
	ErrAttached    = errors.New("another gateway watches the interface: stop it first")
	// ErrNotGateway is a connection to a Server that is not, or not any more, a gateway's.
	ErrNotGateway = errors.New("not a gateway")
)

// OpError says which operation failed.
type OpError struct {
	Op  string // such as "open"
	Err error
}

func (e *OpError) Error() string { return "gateway: " + e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
