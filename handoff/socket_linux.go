// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}

func dupFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n, os.NewSyscallError("fcntl", err)
}

// dupConn returns a descriptor of tcp's socket. net.TCPConn.File would do too, at the price of a blocking socket: the
// mode belongs to the open file, which both descriptors share.
func dupConn(tcp *net.TCPConn) (int, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, derr := -1, error(nil)
	if err := raw.Control(func(fd uintptr) { dup, derr = dupFD(int(fd)) }); err != nil {
		return -1, err
	}
	return dup, derr
}

// boundUnsent sets TCP_NOTSENT_LOWAT on ln, whose connections inherit it.
func boundUnsent(ln *net.TCPListener, bytes int) error {
	raw, err := ln.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, bytes)
	}); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt", serr)
}

// isMultipath reports whether ln hands out Multipath TCP connections.
func isMultipath(ln *net.TCPListener) (bool, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return false, err
	}
	var protocol int
	var perr error
	if err := raw.Control(func(fd uintptr) {
		protocol, perr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
	}); err != nil {
		return false, err
	}
	return protocol == unix.IPPROTO_MPTCP, os.NewSyscallError("getsockopt", perr)
}

// socketAddrs checks that fd is a TCP connection, and returns its addresses, without touching it.
func socketAddrs(fd int) (local, remote *net.TCPAddr, err error) {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return nil, nil, fmt.Errorf("descriptor is not a socket: %w", err)
	}
	if protocol != unix.IPPROTO_TCP {
		return nil, nil, fmt.Errorf("socket is of protocol %d, want TCP", protocol)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, nil, os.NewSyscallError("getsockname", err)
	}
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return nil, nil, os.NewSyscallError("getpeername", err)
	}
	if local, remote = tcpAddr(sa), tcpAddr(peer); local == nil || remote == nil {
		return nil, nil, errors.New("socket is neither IPv4 nor IPv6")
	}
	return local, remote, nil
}

func tcpAddr(sa unix.Sockaddr) *net.TCPAddr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
	case *unix.SockaddrInet6:
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)))
	}
	return nil
}

// option is a socket option with an integer for its value.
type option struct{ level, name int }

// keptOptions returns the options that package net sets to its own taste on every socket it is given.
func keptOptions() [5]option {
	return [...]option{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	}
}

// adoptSocket makes an imported socket, frozen or live, package net's, with the options it came with. It owns fd.
func adoptSocket(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "imported connection")
	defer func() { _ = f.Close() }()
	options := keptOptions()
	var kept [len(options)]int
	for i, o := range options {
		v, err := unix.GetsockoptInt(fd, o.level, o.name)
		if err != nil {
			return nil, os.NewSyscallError("getsockopt", err)
		}
		kept[i] = v
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("imported socket is a %T", conn)
	}
	for i, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, kept[i]); err != nil {
			_ = tcp.Close()
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	return tcp, nil
}
