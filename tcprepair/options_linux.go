// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Bits of SO_BUF_LOCK.
const (
	sendLocked    = 1 // SOCK_SNDBUF_LOCK
	receiveLocked = 2 // SOCK_RCVBUF_LOCK
)

// sockopt is the place of an option that is one int, and what it is on a new socket of an unconfigured kernel.
type sockopt struct {
	level, name int
	standard    uint32
}

// sockoptOf returns the place of the numeric option with a wire number, for an IPv4 (also mapped) or IPv6 flow; ok is false
// for those that are not one int. The wire's order is also the right one to set them in: a traffic class changes the priority.
func sockoptOf(id uint16, ipv6 bool) (o sockopt, ok bool) {
	switch id {
	case 1:
		return sockopt{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0}, true
	case 2:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 7200}, true
	case 3:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 75}, true
	case 4:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9}, true
	case 5:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_NODELAY, 0}, true
	case 6:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_CORK, 0}, true
	case 7:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0}, true
	case 8:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_LINGER2, 60}, true
	case 9:
		return sockopt{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 0}, true
	case 12:
		if ipv6 {
			return sockopt{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0}, true
		}
		return sockopt{unix.IPPROTO_IP, unix.IP_TOS, 0}, true
	case 13:
		if ipv6 {
			return sockopt{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 64}, true
		}
		return sockopt{unix.IPPROTO_IP, unix.IP_TTL, 64}, true
	case 14:
		return sockopt{unix.SOL_SOCKET, unix.SO_PRIORITY, 0}, true
	case 15:
		return sockopt{unix.SOL_SOCKET, unix.SO_MARK, 0}, true
	case 17:
		return sockopt{unix.SOL_SOCKET, unix.SO_OOBINLINE, 0}, true
	case 18:
		return sockopt{unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1}, true
	}
	return sockopt{}, false
}

// read fills everything but the buffer sizes, the window clamp and the pacing rate, which change with the traffic.
func (o *Options) read(s socket, v6Socket, ipv6 bool) error {
	fields := o.fields()
	for i := range fields {
		f := &fields[i]
		place, ok := sockoptOf(f.id, ipv6)
		if !ok {
			continue
		}
		v, err := s.get(place.level, place.name)
		switch {
		case err != nil:
			return fmt.Errorf("read socket option %d of level %d: %w", place.name, place.level, err)
		case v == place.standard:
		case f.flag != nil:
			*f.flag = v != 0
		default:
			*f.number = v
		}
	}
	return o.readOthers(s, v6Socket)
}

func (o *Options) readOthers(s socket, v6Socket bool) error {
	linger, err := s.getPair(unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil {
		return fmt.Errorf("read SO_LINGER: %w", err)
	}
	if o.Linger = linger[0] != 0; o.Linger {
		o.LingerSeconds = linger[1]
	}
	locks, err := s.get(unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) { // Linux before 5.14 cannot tell
		return fmt.Errorf("read SO_BUF_LOCK: %w", err)
	}
	o.SendBufferLocked, o.ReceiveBufferLocked = locks&sendLocked != 0, locks&receiveLocked != 0
	if v6Socket {
		only, err := s.get(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
		if err != nil {
			return fmt.Errorf("read IPV6_V6ONLY: %w", err)
		}
		o.V6Only = only != 0
	}
	peek, err := s.peekOffset()
	if err != nil {
		return err
	}
	o.PeekOffset = peek + 1
	flags, err := s.fileFlags()
	if err != nil {
		return fmt.Errorf("read file flags: %w", err)
	}
	o.NonBlocking = flags&unix.O_NONBLOCK != 0
	if o.Congestion, err = s.getName(unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil {
		return fmt.Errorf("read TCP_CONGESTION: %w", err)
	}
	if o.Device, err = s.getName(unix.SOL_SOCKET, unix.SO_BINDTODEVICE); err != nil {
		return fmt.Errorf("read SO_BINDTODEVICE: %w", err)
	}
	return nil
}

// applyBeforeBind sets what decides about routes, and all that no later step disturbs.
func (o *Options) applyBeforeBind(s socket, ipv6 bool) error {
	if o.V6Only && ipv6 {
		if err := s.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	if o.Device != "" {
		if err := s.setName(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, o.Device); err != nil {
			return fmt.Errorf("%w: no interface %s to bind the socket to: %w", ErrAddress, o.Device, err)
		}
	}
	if o.Congestion != "" {
		// A kernel without it goes on with its default, as the field's documentation says.
		if err := s.setName(unix.IPPROTO_TCP, unix.TCP_CONGESTION, o.Congestion); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set TCP_CONGESTION to %s: %w", o.Congestion, err)
		}
	}
	fields := o.fields()
	for i := range fields {
		f := &fields[i]
		var v uint32
		switch {
		case f.number != nil:
			v = *f.number
		case *f.flag:
			v = 1
		}
		if v == 0 {
			continue
		}
		place, ok := sockoptOf(f.id, ipv6)
		if !ok || place.name == unix.TCP_NOTSENT_LOWAT && place.level == unix.IPPROTO_TCP {
			continue // a low water mark would stop the unsent data: Thaw sets it
		}
		if err := s.set(place.level, place.name, v); err != nil {
			return fmt.Errorf("set socket option %d of level %d to %d: %w", place.name, place.level, v, err)
		}
	}
	if o.Linger {
		if err := s.setPair(unix.SOL_SOCKET, unix.SO_LINGER, [2]uint32{1, o.LingerSeconds}); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	return nil
}
