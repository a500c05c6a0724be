// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Freeze puts a connection into repair mode: the application can neither read nor write, and close is silent. It refuses what
// cannot be moved (ErrState, ErrMPTCP, ErrULP, ErrAuth, ErrPermission) and leaves such a socket as it was.
//
// A frozen socket still receives and acknowledges packets, and its timers still send some: hold the flow's packets in both
// directions before. A process that dies while it is the only owner of a frozen socket takes the connection with it, and the peer
// is not told (KERNEL 10).
//
// The caller must be in the network namespace of the socket.
func Freeze(fd int) error {
	if err := freeze(socket(fd)); err != nil {
		return opError("freeze", socket(fd), err)
	}
	return nil
}

func freeze(s socket) error {
	var info tcpInfo
	if err := movable(s, &info); err != nil {
		return err
	}
	if err := plain(s); err != nil {
		return err
	}
	return enterRepair(s, &info)
}

// plain refuses a connection with an upper layer protocol, such as kernel TLS.
func plain(s socket) error {
	ulp, err := s.getName(unix.IPPROTO_TCP, unix.TCP_ULP)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // Linux before 4.13 has none
		return fmt.Errorf("read TCP_ULP: %w", err)
	}
	switch ulp {
	case "":
		return nil
	case "mptcp":
		return ErrMPTCP
	}
	return fmt.Errorf("%w: %s", ErrULP, ulp)
}

// enterRepair turns repair mode on, unless the connection's segments are signed.
func enterRepair(s socket, info *tcpInfo) error {
	if err := unsigned(s, info); err != nil {
		return err
	}
	return repairOn(s)
}

// movable fills info and refuses what is no TCP connection, or one in a state that is not moved.
func movable(s socket, info *tcpInfo) error {
	n, err := s.info(info)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOPROTOOPT):
		return fmt.Errorf("%w: not a TCP socket: %w", ErrState, err)
	case err != nil:
		return fmt.Errorf("read TCP_INFO: %w", err)
	case !info.state.Movable():
		return fmt.Errorf("%w: it is in %s", ErrState, info.state)
	case n < tcpInfoBytes:
		return fmt.Errorf("%w: TCP_INFO has %d bytes, at least %d are needed (Linux 4.10)", ErrUnsupported, n, tcpInfoBytes)
	}
	return nil
}

func repairOn(s socket) error {
	err := s.repair(unix.TCP_REPAIR_ON)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: %w", ErrMPTCP, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: TCP_REPAIR wants CAP_NET_ADMIN in the user namespace that owns the socket's network namespace: %w", ErrPermission, err)
	case err != nil:
		return fmt.Errorf("set TCP_REPAIR: %w", err)
	}
	return nil
}

// Resume ends repair mode where the connection was frozen, after a move that failed. An established connection sends a window
// probe, whose answer makes up for an acknowledgement lost meanwhile (KERNEL 8). SO_REUSEADDR, which repair mode forgets, is on afterwards.
func Resume(fd int) error {
	s := socket(fd)
	err := s.repair(unix.TCP_REPAIR_OFF)
	if err == nil {
		err = s.set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err != nil {
		return opError("resume", s, err)
	}
	return nil
}

// Discard ends a frozen connection on this host without a word to the peer, because it lives elsewhere now. The socket stays open and out
// of repair mode; its owner sees ECONNABORTED.
func Discard(fd int) error {
	s := socket(fd)
	// Nothing but repair mode makes this silent: a socket that is not frozen is refused, before the peer is reset.
	err := s.selectQueue(queueNone)
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: it is not frozen: %w", ErrState, err)
	}
	if err != nil {
		return opError("discard", s, err)
	}
	if err = s.disconnect(); err == nil {
		err = s.repair(unix.TCP_REPAIR_OFF_NO_WP)
	}
	if err != nil {
		return opError("discard", s, err)
	}
	return nil
}

// Reset ends a connection, frozen or not, with a RST to the peer. The socket stays open; its owner sees ECONNRESET. In Closing
// and LastAck, with nothing left to send, the kernel has no RST to send: both directions have ended, and the peer's last
// segments meet a closed port.
func Reset(fd int) error {
	s := socket(fd)
	// EPERM: without CAP_NET_ADMIN, where the socket cannot have been frozen by us. A RST needs no capability.
	err := s.repair(unix.TCP_REPAIR_OFF_NO_WP)
	if err == nil || errors.Is(err, unix.EPERM) {
		err = s.disconnect()
	}
	if err != nil {
		return opError("reset", s, err)
	}
	return nil
}

// opError names the connection if the socket still knows it.
func opError(op string, s socket, err error) error {
	flow, _, _ := flowOf(s)
	return &OpError{Op: op, Flow: flow, Err: err}
}

// flowOf returns the socket's flow and whether it is an IPv6 socket.
func flowOf(s socket) (Flow, bool, error) {
	remote, v6, err := s.remoteAddr()
	if err != nil {
		return Flow{}, v6, fmt.Errorf("getpeername: %w", err)
	}
	local, v6, err := s.localAddr()
	if err != nil {
		return Flow{}, v6, fmt.Errorf("getsockname: %w", err)
	}
	return Flow{Local: local, Remote: remote}, v6, nil
}
