// SPDX-License-Identifier: Apache-2.0

package tcprepair

import "errors"

// What can be wrong, for errors.Is. The OpError around them says which connection, and what to do about it.
var (
	// ErrState: the socket is not in a state that the operation works on: a listener, a handshake, TIME_WAIT, a closed socket, or
	// one that is not frozen.
	ErrState = errors.New("connection is not in a state that can be moved")
	// ErrMPTCP: the socket speaks MPTCP, which has no repair mode.
	ErrMPTCP = errors.New("connection uses MPTCP: turn it off on the listener (net.ListenConfig.SetMultipathTCP(false), or GODEBUG=multipathtcp=0)")
	// ErrULP: an upper layer protocol such as kernel TLS holds state inside the socket that no snapshot has.
	ErrULP = errors.New("connection uses an upper layer protocol inside the kernel")
	// ErrAuth: the segments are signed (RFC 2385, RFC 5925), and the keys cannot be read back.
	ErrAuth = errors.New("connection is signed with TCP-MD5 or TCP-AO, whose keys cannot be moved")
	// ErrUrgent: a MSG_OOB byte waits in the receive queue; it is not part of what the kernel shows.
	ErrUrgent = errors.New("connection has unread urgent data: the application must read it (MSG_OOB) first")
	// ErrPermission: a capability is missing; the message names it.
	ErrPermission = errors.New("missing capability")
	// ErrInUse: the connection exists on this host already.
	ErrInUse = errors.New("connection exists on this host already: it was restored twice, or its source on the same host is still alive")
	// ErrAddress: the connection's local address is not on this host, or is still tentative, or there is no route to the client.
	ErrAddress = errors.New("address is not usable on this host")
	// ErrTooLarge: a queue is larger than Limits allow.
	ErrTooLarge = errors.New("queue is larger than the limit")
	// ErrUnstable: packets came or went while the snapshot was being taken: hold the flow's packets first.
	ErrUnstable = errors.New("connection does not hold still: its packets must be held in both directions while the snapshot is taken")
	// ErrCorrupt: the bytes are not a snapshot, or a damaged, truncated or contradictory one.
	ErrCorrupt = errors.New("snapshot is damaged")
	// ErrVersion: the snapshot was written by a version of this package that this one does not read.
	ErrVersion = errors.New("snapshot version is not supported: bring both hosts to the same version of rehome")
	// ErrUnsupported: the kernel lacks something; the message names it.
	ErrUnsupported = errors.New("not supported by this kernel")
)

// OpError is the error of every exported operation: what was tried, on which connection (the zero Flow when that was not known
// yet), and why it failed. Unwrap leads to one of the sentinels above or to a unix.Errno, often to both.
type OpError struct {
	Op   string
	Flow Flow
	Err  error
}

// Error implements error.
func (e *OpError) Error() string {
	s := "tcp " + e.Op
	if e.Flow != (Flow{}) {
		s += " " + e.Flow.String()
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }
