// SPDX-License-Identifier: Apache-2.0

package criu

import "golang.org/x/sys/unix"

// resetConnections makes the end of a tree a RST for the peers of its connections: without that it could look to them as if it had said all that it had
// to say.
func resetConnections(pid int) {
	p := &Process{PID: pid}
	tree, err := Tree(pid)
	if err != nil {
		return // it has ended
	}
	for _, member := range tree {
		_ = p.descriptors(member) // as far as they can be seen
	}
	for _, s := range p.Sockets {
		if s.TCP && s.Remote.IsValid() {
			s.setLinger()
		}
	}
}

// setLinger lets a socket's last close reset the connection.
func (s Socket) setLinger() {
	pidfd, err := unix.PidfdOpen(s.owner, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	fd, err := unix.PidfdGetfd(pidfd, s.fd, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd) //nolint:errcheck // the process has it, too
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
