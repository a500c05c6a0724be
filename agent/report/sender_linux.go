// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// sender seals messages and sends them to all dispatchers. It is for one goroutine; heartbeats and load vectors have one each.
type sender struct {
	sealer       *vitals.Sealer
	lines        []*line
	buf          []byte
	sent, failed atomic.Uint64
}

func newSender(key vitals.Key, dispatchers []netip.AddrPort) (_ *sender, err error) {
	s := &sender{buf: make([]byte, 0, vitals.MaxSize)}
	if s.sealer, err = vitals.NewSealer(key); err != nil {
		return nil, err
	}
	for _, d := range dispatchers {
		l, err := openLine(d)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.lines = append(s.lines, l)
	}
	return s, nil
}

// send sends a message to all dispatchers. What fails is counted: the next one is under way soon.
func (s *sender) send(m vitals.Message, now time.Time) error {
	s.buf = s.sealer.Append(s.buf[:0], m, now)
	var errs []error
	for _, l := range s.lines {
		if err := l.send(s.buf); err != nil {
			s.failed.Add(1)
			errs = append(errs, err)
			continue
		}
		s.sent.Add(1)
	}
	return errors.Join(errs...)
}

func (s *sender) close() error {
	var errs []error
	for _, l := range s.lines {
		errs = append(errs, l.close())
	}
	return errors.Join(errs...)
}

// line is the way to one dispatcher: a socket of its own that never waits. While a dispatcher does not answer ARP the kernel keeps what is sent
// to it, until the socket may not send any more; with one socket for all, the others would hear nothing.
type line struct {
	fd         int
	to         unix.Sockaddr // Sendto writes into it
	dispatcher netip.AddrPort
}

func openLine(dispatcher netip.AddrPort) (*line, error) {
	ip := dispatcher.Addr().Unmap()
	var to unix.Sockaddr
	family := unix.AF_INET
	if ip.Is4() {
		to = &unix.SockaddrInet4{Port: int(dispatcher.Port()), Addr: ip.As4()}
	} else {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Port: int(dispatcher.Port()), Addr: ip.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return &line{fd, to, dispatcher}, nil
}

func (l *line) send(b []byte) error {
	if err := unix.Sendto(l.fd, b, unix.MSG_DONTWAIT, l.to); err != nil {
		return fmt.Errorf("dispatcher %v: %w", l.dispatcher, err)
	}
	return nil
}

func (l *line) close() error { return unix.Close(l.fd) }
