// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Every system call and every unsafe of the package is in this file. None of the calls blocks, so the scheduler is not told of them
// (RawSyscall6): at 0.3 us each, that is a third of their price.

// The levels, options and constants that package unix does not name.
const (
	tcpRepairWindow = 29 // TCP_REPAIR_WINDOW

	queueNone    = 0 // TCP_NO_QUEUE
	queueReceive = 1 // TCP_RECV_QUEUE
	queueSend    = 2 // TCP_SEND_QUEUE

	// Codes of TCP_REPAIR_OPTIONS: the TCP options' kinds.
	optMSS       = 2
	optScale     = 3
	optSACK      = 4
	optTimestamp = 8

	// Bits of tcpi_options.
	infoTimestamps = 1
	infoSACK       = 2
	infoScale      = 4
	infoECN        = 8
)

// socket is a file descriptor of a socket, owned by somebody else.
type socket int

// sockaddrBytes holds a sockaddr_in6, the larger one.
type sockaddrBytes [unix.SizeofSockaddrInet6]byte

// memInfo is SO_MEMINFO (linux/sock_diag.h), in bytes.
type memInfo struct {
	receiveAlloc, receiveBuffer uint32
	sendAlloc, sendBuffer       uint32
	forwardAlloc, sendQueued    uint32
	_                           [3]uint32
}

// tcpInfo is the beginning of struct tcp_info (linux/tcp.h). Its bit fields are read by the method scales.
type tcpInfo struct {
	state                                    State
	caState, retransmits, probes, backoff    uint8
	options, scaleBits, _                    uint8
	rto, ato, sendMSS, receiveMSS            uint32
	unacked, sacked, lost, retrans, fackets  uint32
	lastSent, lastAckSent, lastRecv, lastAck uint32
	pathMTU, receiveThreshold, rtt, rttVar   uint32
	sendThreshold, congestionWindow, advMSS  uint32
	reordering, receiveRTT, receiveSpace     uint32
	totalRetrans                             uint32
	pacingRate, maxPacingRate                uint64
	bytesAcked, bytesReceived                uint64
	segsOut, segsIn, notSent, minRTT         uint32
}

const tcpInfoBytes = int(unsafe.Sizeof(tcpInfo{}))

// scales returns the two window scales: the 4-bit fields are laid out from the low bits on little-endian machines, the only ones supported.
func (t *tcpInfo) scales() (send, receive uint8) { return t.scaleBits & 0xf, t.scaleBits >> 4 }

// repairOption is struct tcp_repair_opt.
type repairOption struct{ code, value uint32 }

func errnoErr(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func (s socket) getsockopt(level, name int, p unsafe.Pointer, n *uint32) error {
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(s), uintptr(level), uintptr(name), uintptr(p), uintptr(unsafe.Pointer(n)), 0)
	return errnoErr(e)
}

func (s socket) setsockopt(level, name int, p unsafe.Pointer, n uintptr) error {
	_, _, e := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(s), uintptr(level), uintptr(name), uintptr(p), n, 0)
	return errnoErr(e)
}

func (s socket) get(level, name int) (uint32, error) {
	var v uint32
	n := uint32(4)
	err := s.getsockopt(level, name, unsafe.Pointer(&v), &n)
	return v, err
}

func (s socket) set(level, name int, v uint32) error {
	return s.setsockopt(level, name, unsafe.Pointer(&v), 4)
}

func (s socket) setUint64(level, name int, v uint64) error {
	return s.setsockopt(level, name, unsafe.Pointer(&v), 8)
}

// getPair and setPair are for options of two numbers: struct linger, struct timeval of the 64-bit kernels.
// peekOffset is SO_PEEK_OFF, all ones where it is off. TCP has none over IPv4 before Linux 6.10, over IPv6 before 6.12.
func (s socket) peekOffset() (uint32, error) {
	offset, err := s.get(unix.SOL_SOCKET, unix.SO_PEEK_OFF)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return ^uint32(0), nil
	}
	if err != nil {
		return 0, fmt.Errorf("read SO_PEEK_OFF: %w", err)
	}
	return offset, nil
}

func (s socket) getPair(level, name int) ([2]uint32, error) {
	var v [2]uint32
	n := uint32(8)
	err := s.getsockopt(level, name, unsafe.Pointer(&v), &n)
	return v, err
}

func (s socket) setPair(level, name int, v [2]uint32) error {
	return s.setsockopt(level, name, unsafe.Pointer(&v), 8)
}

// getName returns an option that is a short string, without its final zeros.
func (s socket) getName(level, name int) (string, error) {
	var b [16]byte
	n := uint32(len(b))
	if err := s.getsockopt(level, name, unsafe.Pointer(&b), &n); err != nil {
		return "", err
	}
	for i, c := range b[:min(int(n), len(b))] {
		if c == 0 {
			return string(b[:i]), nil
		}
	}
	return string(b[:min(int(n), len(b))]), nil
}

func (s socket) setName(level, name int, v string) error {
	var b [16]byte
	n := copy(b[:maxName], v)
	return s.setsockopt(level, name, unsafe.Pointer(&b), uintptr(n))
}

// info fills t and returns how many bytes of it the kernel knows.
func (s socket) info(t *tcpInfo) (int, error) {
	n := uint32(unsafe.Sizeof(*t))
	err := s.getsockopt(unix.IPPROTO_TCP, unix.TCP_INFO, unsafe.Pointer(t), &n)
	return int(n), err
}

func (s socket) memory(m *memInfo) error {
	n := uint32(unsafe.Sizeof(*m))
	return s.getsockopt(unix.SOL_SOCKET, unix.SO_MEMINFO, unsafe.Pointer(m), &n)
}

func (s socket) window(w *Window) error {
	var raw [5]uint32 // snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup
	n := uint32(unsafe.Sizeof(raw))
	if err := s.getsockopt(unix.IPPROTO_TCP, tcpRepairWindow, unsafe.Pointer(&raw), &n); err != nil {
		return err
	}
	*w = Window{LastUpdate: raw[0], Send: raw[1], MaxSend: raw[2], Receive: raw[3], Announced: raw[4]}
	return nil
}

func (s socket) setWindow(w Window) error {
	raw := [5]uint32{w.LastUpdate, w.Send, w.MaxSend, w.Receive, w.Announced}
	return s.setsockopt(unix.IPPROTO_TCP, tcpRepairWindow, unsafe.Pointer(&raw), unsafe.Sizeof(raw))
}

func (s socket) setRepairOptions(o []repairOption) error {
	return s.setsockopt(unix.IPPROTO_TCP, unix.TCP_REPAIR_OPTIONS, unsafe.Pointer(unsafe.SliceData(o)), uintptr(len(o))*unsafe.Sizeof(o[0]))
}

// repair turns repair mode on (1), off with a window probe (0) or off without (-1).
func (s socket) repair(mode int32) error {
	return s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR, uint32(mode))
}

func (s socket) selectQueue(q uint32) error {
	return s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, q)
}

func (s socket) ioctl(request uintptr) (int, error) {
	var v int32
	_, _, e := unix.RawSyscall6(unix.SYS_IOCTL, uintptr(s), request, uintptr(unsafe.Pointer(&v)), 0, 0, 0)
	return int(v), errnoErr(e)
}

// receive is recv(2), MSG_DONTWAIT implied.
func (s socket) receive(b []byte, flags int) (int, error) {
	return s.transfer(unix.SYS_RECVFROM, b, flags)
}

// send is send(2), MSG_DONTWAIT and MSG_NOSIGNAL implied.
func (s socket) send(b []byte) (int, error) {
	return s.transfer(unix.SYS_SENDTO, b, unix.MSG_NOSIGNAL)
}

// transfer tells the scheduler only if b is so large that copying it takes long.
func (s socket) transfer(call uintptr, b []byte, flags int) (int, error) {
	const large = 1 << 20
	do := unix.RawSyscall6
	if len(b) >= large {
		do = unix.Syscall6
	}
	n, _, e := do(call, uintptr(s), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// sendTo is for raw sockets: b is a whole packet, the address only chooses the route.
func (s socket) sendTo(b []byte, to netip.Addr) error {
	var sa sockaddrBytes
	n := putSockaddr(&sa, netip.AddrPortFrom(to, 0), false)
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, uintptr(unsafe.Pointer(&sa)), n)
	return errnoErr(e)
}

func (s socket) shutdownWrite() error {
	_, _, e := unix.RawSyscall6(unix.SYS_SHUTDOWN, uintptr(s), unix.SHUT_WR, 0, 0, 0, 0)
	return errnoErr(e)
}

func (s socket) bind(a netip.AddrPort, mapped bool) error {
	var sa sockaddrBytes
	n := putSockaddr(&sa, a, mapped)
	_, _, e := unix.RawSyscall6(unix.SYS_BIND, uintptr(s), uintptr(unsafe.Pointer(&sa)), n, 0, 0, 0)
	return errnoErr(e)
}

func (s socket) connect(a netip.AddrPort, mapped bool) error {
	var sa sockaddrBytes
	n := putSockaddr(&sa, a, mapped)
	_, _, e := unix.RawSyscall6(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&sa)), n, 0, 0, 0)
	return errnoErr(e)
}

// disconnect is connect(AF_UNSPEC): in repair mode the connection vanishes without a word, else with a RST.
func (s socket) disconnect() error {
	var sa sockaddrBytes // AF_UNSPEC is 0
	_, _, e := unix.RawSyscall6(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4, 0, 0, 0)
	return errnoErr(e)
}

// localAddr and remoteAddr return the address unmapped and whether the socket is an AF_INET6 one.
func (s socket) localAddr() (netip.AddrPort, bool, error)  { return s.name(unix.SYS_GETSOCKNAME) }
func (s socket) remoteAddr() (netip.AddrPort, bool, error) { return s.name(unix.SYS_GETPEERNAME) }

func (s socket) name(call uintptr) (netip.AddrPort, bool, error) {
	var sa sockaddrBytes
	n := uint32(len(sa))
	_, _, e := unix.RawSyscall6(call, uintptr(s), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&n)), 0, 0, 0)
	if e != 0 {
		return netip.AddrPort{}, false, e
	}
	port := binary.BigEndian.Uint16(sa[2:])
	switch binary.NativeEndian.Uint16(sa[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(sa[4:8])), port), false, nil
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(sa[8:24])).Unmap(), port), true, nil
	}
	return netip.AddrPort{}, false, unix.EAFNOSUPPORT
}

// putSockaddr writes a as the kernel wants it and returns its size.
func putSockaddr(sa *sockaddrBytes, a netip.AddrPort, mapped bool) uintptr {
	binary.BigEndian.PutUint16(sa[2:], a.Port())
	if a.Addr().Is4() && !mapped {
		binary.NativeEndian.PutUint16(sa[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(sa[4:], ip[:])
		return unix.SizeofSockaddrInet4
	}
	binary.NativeEndian.PutUint16(sa[:], unix.AF_INET6)
	ip := a.Addr().As16() // maps IPv4
	copy(sa[8:], ip[:])
	return unix.SizeofSockaddrInet6
}

// newSocket returns a socket that is closed on exec.
func newSocket(family, kind, protocol int) (socket, error) {
	fd, _, e := unix.RawSyscall6(unix.SYS_SOCKET, uintptr(family), uintptr(kind|unix.SOCK_CLOEXEC), uintptr(protocol), 0, 0, 0)
	return socket(fd), errnoErr(e)
}

func (s socket) close() {
	// In repair mode this is silent; there is nothing to be done about an error of close(2).
	_, _, _ = unix.RawSyscall6(unix.SYS_CLOSE, uintptr(s), 0, 0, 0, 0, 0)
}

// pause lets the softirq of another core get on with what it has put off.
func pause(milliseconds int) {
	_, _ = unix.Poll(nil, milliseconds) // ending early is harmless
}

// fileFlags are those of fcntl(F_GETFL), among them O_NONBLOCK.
func (s socket) fileFlags() (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_FCNTL, uintptr(s), unix.F_GETFL, 0, 0, 0, 0)
	return int(n), errnoErr(e)
}
