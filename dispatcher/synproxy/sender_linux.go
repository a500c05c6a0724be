// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// sender sends whole frames. It receives none.
type sender struct{ fd int }

func newSender() (*sender, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: PACKET_VNET_HDR: %w", err), unix.Close(fd))
	}
	return &sender{fd: fd}, nil
}

// send sends a frame, which has its virtio_net_hdr in front.
func (s *sender) send(ifindex int, frame []byte) error {
	to := unix.SockaddrLinklayer{Ifindex: ifindex, Protocol: binary.NativeEndian.Uint16(frame[vnetSize+12:])}
	for {
		err := unix.Sendto(s.fd, frame, 0, &to)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *sender) close() error { return unix.Close(s.fd) }
