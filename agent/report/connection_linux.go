// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// countEvery is how often connections are counted: the kernel looks at all of the host's for that.
const countEvery = time.Second

// Kernel states of connections that are served: ESTABLISHED, and CLOSE_WAIT, in which the client has said all and may still be answered.
const (
	stateEstablished = 1
	stateCloseWait   = 8
)

// connections counts the TCP connections at addresses, in this network namespace.
func (k *kernel) connections(services []netip.AddrPort) (count uint32, err error) {
	defer func() {
		if err != nil {
			k.close() // what is left of this answer must not be taken for the next
			err = fmt.Errorf("sock_diag: %w", err)
		}
	}()
	if err := k.openDiag(); err != nil {
		return 0, err
	}
	if len(services) == 0 {
		return 0, nil
	}
	wanted := make(map[netip.AddrPort]bool, len(services))
	port := services[0].Port()
	for _, a := range services {
		wanted[netip.AddrPortFrom(a.Addr().Unmap(), a.Port())] = true
		if a.Port() != port {
			port = 0 // the kernel compares with one: looking through its table again costs more than telling of all (milliseconds)
		}
	}
	for _, family := range []byte{familyIPv4, familyIPv6} {
		if err := k.ask(family, 1<<stateEstablished|1<<stateCloseWait, port); err != nil {
			return 0, err
		}
		for done := false; !done; {
			n, _, err := unix.Recvfrom(k.diag, k.buf, 0)
			if err != nil {
				return 0, err
			}
			if count, done, err = countAnswer(count, k.buf[:n], wanted); err != nil {
				return 0, err
			}
		}
	}
	return count, nil
}

// countAnswer adds the connections of one datagram of the kernel's that are at wanted addresses; done is set when it was the last.
func countAnswer(count uint32, b []byte, wanted map[netip.AddrPort]bool) (_ uint32, done bool, err error) {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return 0, false, err
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.NLMSG_DONE:
			return count, true, nil
		case unix.NLMSG_ERROR:
			return 0, false, fmt.Errorf("%w: refused", errFormat)
		}
		at, err := parseLocal(m.Data)
		if err != nil {
			return 0, false, err
		}
		if wanted[at] && count < math.MaxUint32 {
			count++
		}
	}
	return count, false, nil
}

// parseLocal reads the local address of an inet_diag_msg.
func parseLocal(b []byte) (netip.AddrPort, error) {
	if len(b) < diagSize {
		return netip.AddrPort{}, fmt.Errorf("%w: %d bytes", errFormat, len(b))
	}
	width := 4
	switch b[0] {
	case familyIPv4:
	case familyIPv6:
		width = 16
	default:
		return netip.AddrPort{}, fmt.Errorf("%w: family %d", errFormat, b[0])
	}
	ip, _ := netip.AddrFromSlice(b[diagAddress : diagAddress+width])
	return netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b[diagPort:])), nil
}
