// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Socket is a socket of a process.
type Socket struct {
	Inode uint64
	// TCP is set for a TCP socket; of others only Inode is told.
	TCP bool
	// Multipath is set when its protocol is Multipath TCP.
	Multipath bool
	// Listens is set for a listener, Connects while a connection is being opened.
	Listens, Connects bool
	// Local is the address it is bound to, Remote that of its peer; invalid when there is none.
	Local, Remote netip.AddrPort

	owner, fd int // a process that has it, and its number there
}

// States of a TCP socket (include/net/tcp_states.h).
const (
	stateSynSent = 2
	stateClose   = 7
	stateListen  = 10
)

// inspectSocket looks at a descriptor of another process.
func inspectSocket(pidfd, fd int) (Socket, error) {
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return Socket{}, fmt.Errorf("look at descriptor %d: %w", fd, err)
	}
	defer unix.Close(own) //nolint:errcheck // the process has it, too
	return socketOf(own)
}

func socketOf(fd int) (Socket, error) {
	var s Socket
	option := func(name int) int {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		if err != nil {
			return 0
		}
		return v
	}
	domain := option(unix.SO_DOMAIN)
	if domain != unix.AF_INET && domain != unix.AF_INET6 {
		return s, nil
	}
	switch option(unix.SO_PROTOCOL) {
	case unix.IPPROTO_MPTCP:
		s.Multipath = true
		return s, nil
	case unix.IPPROTO_TCP:
		s.TCP = true
	default:
		return s, nil
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return s, fmt.Errorf("state of a socket: %w", err)
	}
	s.Listens, s.Connects = info.State == stateListen, info.State == stateSynSent
	if local, err := unix.Getsockname(fd); err == nil {
		s.Local = addrPort(local)
	}
	if s.Listens || s.Connects || info.State == stateClose {
		return s, nil
	}
	remote, err := unix.Getpeername(fd)
	if err != nil && !errors.Is(err, unix.ENOTCONN) {
		return s, fmt.Errorf("peer of a socket: %w", err)
	}
	s.Remote = addrPort(remote)
	return s, nil
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// Waiting returns how many connections wait to be accepted by the tree's listeners. CRIU cannot move those.
func (p *Process) Waiting() int {
	n := 0
	for _, s := range p.Sockets {
		if s.Listens {
			n += s.waiting()
		}
	}
	return n
}

// waiting returns the length of a listener's queue; 0 if it has been closed.
func (s Socket) waiting() int {
	pidfd, err := unix.PidfdOpen(s.owner, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	fd, err := unix.PidfdGetfd(pidfd, s.fd, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd) //nolint:errcheck // the process has it, too
	// Of a listener this field tells of its queue (tcp_get_info).
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.State != stateListen {
		return 0
	}
	return int(info.Unacked)
}
