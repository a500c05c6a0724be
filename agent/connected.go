// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// connected reports whether this host's kernel has a connection of flow f, whoever owns its socket.
func connected(f tcprepair.Flow) (bool, error) {
	s, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err != nil {
		return false, fmt.Errorf("open a diagnosis socket: %w", err)
	}
	defer s.Close()
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	req.AddData(socketOf(f))
	_, err = req.Execute(unix.NETLINK_INET_DIAG, 0)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("look for the socket: %w", err)
}

// socketOf is the kernel's inet_diag_req_v2, which asks for one TCP socket (sock_diag(7)).
type socketOf tcprepair.Flow

// Len returns the size of the request in bytes.
func (socketOf) Len() int { return 56 }

// Serialize returns the request.
func (f socketOf) Serialize() []byte {
	b := make([]byte, 0, 56)
	family := byte(unix.AF_INET6)
	if f.Local.Addr().Is4() {
		family = unix.AF_INET
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // in any state
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = binary.BigEndian.AppendUint16(b, f.Remote.Port())
	for _, a := range [][]byte{f.Local.Addr().AsSlice(), f.Remote.Addr().AsSlice()} {
		b = append(append(b, a...), make([]byte, 16-len(a))...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0)               // over any interface
	return append(b, 255, 255, 255, 255, 255, 255, 255, 255) // and whatever its cookie is
}
