// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"errors"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connectRaw is connect() with an address that package unix does not make.
func connectRaw(fd int, to *unix.RawSockaddrAny) error {
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unsafe.Sizeof(to.Addr))
	if errno != 0 {
		return errno
	}
	return nil
}

// visit makes one connection from the calling thread's namespace, and resets it.
func visit(at netip.AddrPort, l *net.TCPListener) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}); err != nil {
		_ = unix.Close(fd)
		return err
	}
	c, err := l.AcceptTCP()
	if err == nil {
		err = c.Close()
	}
	hard := unix.Linger{Onoff: 1}
	return errors.Join(err, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &hard), unix.Close(fd))
}
