// SPDX-License-Identifier: Apache-2.0

package cookie

import "errors"

// What callers can tell apart with errors.Is.
var (
	// ErrPermission: a capability is missing.
	ErrPermission = errors.New("not permitted: needs CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON")
	// ErrUnsupported: use another delivery on this host.
	ErrUnsupported = errors.New("not supported by this kernel: needs Linux 6.9 with BTF, CONFIG_SYN_COOKIES and CONFIG_NET_XGRESS")
	// ErrSyncookies: the kernel would answer clients' first packets with RST.
	ErrSyncookies = errors.New("net.ipv4.tcp_syncookies is 0 in this network namespace: set it to 1")
	// ErrAttached: two would make every connection twice.
	ErrAttached = errors.New("another acceptor is attached to the interface: stop its agent, or remove what it left pinned")
)

// OpError says which operation failed.
type OpError struct {
	Op  string // such as "open"
	Err error
}

func (e *OpError) Error() string { return "cookie: " + e.Op + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
