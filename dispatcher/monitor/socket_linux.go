// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// receiveBuffer is for some thousand datagrams: a thousand hosts that send every 10 ms, while the receiver stands still for 40.
const receiveBuffer = 4 << 20

// socket is the monitor's UDP socket, outside the runtime's poller: one thread waits for it and for the clock.
type socket struct {
	file *os.File // owns fd
	fd   int
	addr netip.AddrPort
	// buf has room for one byte more than the longest datagram, so that a longer one is seen to be.
	buf []byte
	oob []byte
	// drops is the kernel's counter.
	drops uint32
}

func listen(address string, size int) (*socket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = prepare(int(fd)) }); e != nil {
			return e
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // the descriptor is duplicated
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return nil, fmt.Errorf("%T is no UDP socket", conn)
	}
	addr, err := netip.ParseAddrPort(udp.LocalAddr().String())
	if err != nil {
		return nil, err
	}
	file, err := udp.File()
	if err != nil {
		return nil, err
	}
	return &socket{file: file, fd: int(file.Fd()), addr: addr, buf: make([]byte, size+1), oob: make([]byte, 256)}, nil
}

func prepare(fd int) error {
	for option, value := range map[int]int{unix.SO_TIMESTAMPNS: 1, unix.SO_RXQ_OVFL: 1} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, value); err != nil {
			return fmt.Errorf("setsockopt %d: %w", option, err)
		}
	}
	// Beyond the system's limit where that is allowed, else up to it.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	return nil
}

func (s *socket) close() error { return s.file.Close() }

// read returns the next datagram and the time of its arrival; ok is false when there is none. The bytes are good until the next call.
func (s *socket) read() (b []byte, arrived time.Time, ok bool, err error) {
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, s.buf, s.oob, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil, time.Time{}, false, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, time.Time{}, false, os.NewSyscallError("recvmsg", err)
		}
		return s.buf[:n], s.control(s.oob[:oobn]), true, nil
	}
}

// control reads the kernel's notes: when the datagram arrived, and how many were dropped before it.
func (s *socket) control(oob []byte) (arrived time.Time) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Time{}
	}
	for _, m := range messages {
		switch {
		case m.Header.Level != unix.SOL_SOCKET:
		case m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			sec, nsec := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			arrived = time.Unix(int64(sec), int64(nsec))
		case m.Header.Type == unix.SO_RXQ_OVFL && len(m.Data) >= 4:
			s.drops = binary.NativeEndian.Uint32(m.Data)
		}
	}
	return arrived
}
