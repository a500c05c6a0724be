// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// States of TCP sockets as bits (include/net/tcp_states.h).
const (
	bitSynReceived = 1 << 3
	bitListen      = 1 << 10
)

// Sizes and places in struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h).
const (
	socketQuerySize  = 56
	socketAnswerSize = 72
)

// socketQuery asks for sockets in some states (sock_diag(7)).
type socketQuery struct {
	family uint8
	states uint32
}

// Len implements nl.NetlinkRequestData.
func (r socketQuery) Len() int { return socketQuerySize }

// Serialize implements nl.NetlinkRequestData.
func (r socketQuery) Serialize() []byte {
	b := make([]byte, socketQuerySize)
	b[0], b[1] = r.family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

// sockets returns the local addresses of this host's TCP sockets in some states.
func sockets(states uint32) ([]netip.AddrPort, error) {
	var found []netip.AddrPort
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(socketQuery{family: family, states: states})
		messages, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		for _, m := range messages {
			if a, ok := parseDiag(m); ok {
				found = append(found, a)
			}
		}
	}
	return found, nil
}

// parseDiag returns the local address in a struct inet_diag_msg.
func parseDiag(m []byte) (netip.AddrPort, bool) {
	if len(m) < socketAnswerSize {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16(m[4:])
	switch m[0] {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[8:12])), port), true
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(m[8:24])), port), true
	}
	return netip.AddrPort{}, false
}

// whoListens returns the addresses that somebody listens at on this host.
func whoListens() ([]netip.AddrPort, error) { return sockets(bitListen) }

// handshakes returns how many connections to one of the addresses are being set up.
func handshakes(addresses []netip.AddrPort) (int, error) {
	found, err := sockets(bitSynReceived)
	n := 0
	for _, f := range found {
		for _, a := range addresses {
			if f.Port() == a.Port() && f.Addr().Unmap() == a.Addr() {
				n++
			}
		}
	}
	return n, err
}
