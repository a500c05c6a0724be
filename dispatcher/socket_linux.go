// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// backlog is the length of a listener's accept queue, which net.core.somaxconn bounds further.
const backlog = 4096

// listen opens one of a service's listening sockets. The address need not be on the host yet. With deferred set, connections wait in
// the kernel until their first bytes are there.
func listen(at netip.AddrPort, deferred time.Duration) (fd int, err error) {
	family := unix.AF_INET6
	if at.Addr().Is4() {
		family = unix.AF_INET
	}
	// The protocol by its number: a socket of Go's own would speak MPTCP, which cannot be frozen (KERNEL 1).
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	opened := fd // a failing return overwrites fd
	defer func() {
		if err != nil {
			_ = unix.Close(opened)
		}
	}()
	options := []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
		{unix.IPPROTO_IP, unix.IP_FREEBIND, 1},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
	}
	if family == unix.AF_INET6 {
		options = append(options, struct{ level, name, value int }{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1})
	}
	if deferred > 0 {
		options = append(options, struct{ level, name, value int }{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, max(1, int(deferred/time.Second))})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return -1, fmt.Errorf("set option %d/%d of a listener: %w", o.level, o.name, err)
		}
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return -1, fmt.Errorf("bind to %v: %w", at, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return -1, fmt.Errorf("listen at %v: %w", at, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16(), ZoneId: zone(a.Addr())}
}

func zone(a netip.Addr) uint32 {
	if a.Zone() == "" {
		return 0
	}
	i, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

// accept returns the next connection of a listener at the address local, or unix.EAGAIN.
func accept(listener int, local netip.AddrPort) (int, tcprepair.Flow, error) {
	for {
		fd, from, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return -1, tcprepair.Flow{}, err
		}
		var remote netip.AddrPort
		switch a := from.(type) {
		case *unix.SockaddrInet4:
			remote = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
		case *unix.SockaddrInet6:
			remote = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
		}
		return fd, tcprepair.NewFlow(local, remote), nil
	}
}

// peekInto copies what the connection has received, from its start, and leaves it there; io.EOF is 0 and nil.
func peekInto(fd int, b []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// answer writes what a refused client is told, if anything, and ends the connection: with a RST when there is nothing to say, else in
// order, and then the client has the chance to read it. It reports whether the caller must wait for the client's end and close fd then.
func answer(fd int, text []byte) (wait bool) {
	if len(text) == 0 {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return false
	}
	if n, err := unix.SendmsgN(fd, text, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil || n != len(text) {
		return false
	}
	return unix.Shutdown(fd, unix.SHUT_WR) == nil
}

// swallow throws away what the client has sent, and reports whether more may come.
func swallow(fd int, b []byte) bool {
	for range 64 {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return true
		case err != nil || n == 0:
			return false
		}
	}
	return true
}
