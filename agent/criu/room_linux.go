// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// packetOverhead is how many bytes of memory a byte of a single full segment may take. Peers have been promised windows for segments
// in long chains, as segmentation offload makes them, which take hardly more than their data. What was held while the tree was away comes one by one.
const packetOverhead = 2

// makeRoom gives the connections of a tree that has just been restored, and whose sockets are in repair mode, room for all that their peers may still
// send without asking. Otherwise the kernel drops a part of that, and peers notice after a retransmission timeout. What cannot be made
// room for is left as it is: it costs time, not data.
func makeRoom(pid int) {
	p := &Process{PID: pid}
	tree, err := Tree(pid)
	if err != nil {
		return // whoever looks next will say so
	}
	for _, member := range tree {
		_ = p.descriptors(member) // as far as they can be seen
	}
	for _, s := range p.Sockets {
		if s.TCP && s.Remote.IsValid() {
			_ = s.makeRoom()
		}
	}
}

func (s Socket) makeRoom() error {
	pidfd, err := unix.PidfdOpen(s.owner, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	fd, err := unix.PidfdGetfd(pidfd, s.fd, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the process has it, too
	return makeRoomFor(fd)
}

// makeRoomFor enlarges a receive buffer if the window that was offered needs it. Whether the size is fixed stays as it was.
func makeRoomFor(fd int) error {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return fmt.Errorf("state of a socket: %w", err)
	}
	queued, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		return fmt.Errorf("length of the receive queue: %w", err)
	}
	room, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return fmt.Errorf("read SO_RCVBUF: %w", err)
	}
	want := roomFor(queued, info.Rcv_wnd) // a window of 0 before Linux 6.2, which does not tell: then nothing changes
	if want <= room {
		return nil
	}
	locks, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err != nil {
		return fmt.Errorf("read SO_BUF_LOCK (Linux 5.14): %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, want/2); err != nil { // the kernel doubles it
		return fmt.Errorf("set the receive buffer to %d bytes (CAP_NET_ADMIN): %w", want, err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK, locks); err != nil {
		return fmt.Errorf("set SO_BUF_LOCK: %w", err)
	}
	return nil
}

// roomFor returns how large a receive buffer must be for what waits in it and a window of single segments: at most 1 GiB.
func roomFor(queued int, window uint32) int {
	return min(packetOverhead*(max(queued, 0)+int(window)), 1<<30)
}
