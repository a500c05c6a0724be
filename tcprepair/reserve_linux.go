// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Reservation is a socket that waits for its snapshot. It takes what is slow or likely to fail out of the freeze: the socket exists, has the
// local address and the server's options. It owns its descriptor: Restore or Close ends that.
type Reservation struct {
	sock    socket
	outline Outline
	cfg     RestoreConfig
}

// Reserve makes a socket for the connection that an outline announces, in the caller's network namespace. The errors are those
// of Restore, as far as they can be known. Any number of reservations may share the port with a listener and other connections.
func Reserve(o *Outline, cfg RestoreConfig) (*Reservation, error) {
	v := &Reservation{sock: -1, outline: *o, cfg: cfg}
	err := o.validate()
	if err == nil {
		err = v.build()
	}
	if err != nil {
		v.Close()
		return nil, &OpError{Op: "reserve", Flow: o.Flow, Err: err}
	}
	return v, nil
}

// Restore is as the function Restore, and uses the reservation up, whether it succeeds or not.
func (v *Reservation) Restore(s *Snapshot) (*Restored, error) {
	var err error
	switch o := &v.outline; {
	case v.sock < 0:
		err = fmt.Errorf("%w: the reservation has been used", ErrState)
	case s.Flow != o.Flow || s.Mapped != o.Mapped:
		err = fmt.Errorf("%w: the reservation is for %s", ErrState, o.Flow)
	default:
		err = s.validate(unlimited())
	}
	if err != nil {
		v.Close()
		return nil, &OpError{Op: "restore", Flow: s.Flow, Err: err}
	}
	return v.restore(s)
}

func (v *Reservation) restore(s *Snapshot) (*Restored, error) {
	r := &Restored{sock: v.sock, snap: s, raw: -1, flow: s.Flow}
	v.sock = -1
	if err := r.build(v.cfg); err != nil {
		r.release()
		return nil, &OpError{Op: "restore", Flow: s.Flow, Err: err}
	}
	return r, nil
}

// Close gives the reservation up. It does nothing after Restore.
func (v *Reservation) Close() {
	if v.sock >= 0 {
		v.sock.close()
	}
	v.sock = -1
}

func (v *Reservation) build() error {
	o := &v.outline
	ipv6 := o.Flow.Local.Addr().Is6()
	if err := v.open(ipv6); err != nil {
		return err
	}
	if err := o.Options.applyBeforeBind(v.sock, ipv6); err != nil {
		return permission(err, "CAP_NET_ADMIN")
	}
	if err := v.sock.bind(o.Flow.Local, o.Mapped); err != nil {
		return addressError("bind to "+o.Flow.Local.String(), err)
	}
	// The first thing that Restore needs: nobody else has the socket yet, so no stray write can go into it.
	if err := v.sock.selectQueue(queueSend); err != nil {
		return fmt.Errorf("select the send queue: %w", err)
	}
	return nil
}

// open creates the socket and puts it into repair mode, before bind: only so may many connections and their listener share a port.
func (v *Reservation) open(ipv6 bool) error {
	o := &v.outline
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if ipv6 || o.Mapped {
		family = unix.AF_INET6
	}
	if o.Options.NonBlocking {
		kind |= unix.SOCK_NONBLOCK
	}
	var err error
	if v.sock, err = newSocket(family, kind, unix.IPPROTO_TCP); err != nil {
		v.sock = -1
		return fmt.Errorf("create socket: %w", err)
	}
	if err := repairOn(v.sock); err != nil {
		return err
	}
	if o.Mapped { // net.ipv6.bindv6only may say otherwise
		if err := v.sock.set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return fmt.Errorf("clear IPV6_V6ONLY: %w", err)
		}
	}
	if v.cfg.FreeBind {
		if err := v.sock.set(unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
			return fmt.Errorf("set IP_FREEBIND: %w", err)
		}
	}
	return nil
}
