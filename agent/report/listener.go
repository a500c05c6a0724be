// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// listener is a TCP socket that connections come to.
type listener struct {
	addr netip.AddrPort
	// waiting are the connections that nobody has accepted yet, room is how many may wait.
	waiting, room uint32
}

// The kernel's struct inet_diag_msg (linux/inet_diag.h), up to what is read here.
const (
	diagPort    = 4  // id.idiag_sport, big-endian
	diagAddress = 8  // id.idiag_src
	diagWaiting = 56 // idiag_rqueue: sk_ack_backlog of a listener
	diagRoom    = 60 // idiag_wqueue: sk_max_ack_backlog
	diagSize    = 72

	familyIPv4, familyIPv6 = 2, 10
	stateListen            = 10
)

// parseListener reads an inet_diag_msg.
func parseListener(b []byte) (listener, error) {
	if len(b) < diagSize {
		return listener{}, fmt.Errorf("%w: %d bytes", errFormat, len(b))
	}
	if b[1] != stateListen {
		return listener{}, fmt.Errorf("%w: state %d", errFormat, b[1])
	}
	width := 4
	switch b[0] {
	case familyIPv4:
	case familyIPv6:
		width = 16
	default:
		return listener{}, fmt.Errorf("%w: family %d", errFormat, b[0])
	}
	ip, _ := netip.AddrFromSlice(b[diagAddress : diagAddress+width])
	return listener{
		addr:    netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b[diagPort:])),
		waiting: binary.NativeEndian.Uint32(b[diagWaiting:]), room: binary.NativeEndian.Uint32(b[diagRoom:]),
	}, nil
}

// serves reports whether connections to an address come to the listener. One of "::" usually takes IPv4, too; whether it does
// cannot be seen here.
func (l *listener) serves(at netip.AddrPort) bool {
	if l.addr.Port() != at.Port() {
		return false
	}
	ip, want := l.addr.Addr(), at.Addr().Unmap()
	return ip == want || ip.IsUnspecified() && (ip.Is6() || want.Is4())
}

// fill is how full the queue is, 0 to 1. The kernel lets one more wait than the backlog says.
func (l *listener) fill() float64 { return min(float64(l.waiting)/float64(max(l.room, 1)), 1) }
