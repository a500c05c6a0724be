// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// Kernel states of a socket that is no connection any more, or not yet one; see tcprepair.State for the others.
const (
	stateNone     tcprepair.State = 0
	stateTimeWait tcprepair.State = 6
	stateListen   tcprepair.State = 10
)

// presence is what a host's kernel has of a connection.
type presence uint8

const (
	absent  presence = iota
	present          // the connection, or what is left of it
	unclear          // what is left of this one, or of the one before with the same addresses
)

const (
	// timeWaitTime is TCP_TIMEWAIT_LEN of the kernel, how long it remembers a connection.
	timeWaitTime = time.Minute
	// agedBy is how much of a connection's age may be lost on the way here.
	agedBy = 100 * time.Millisecond
)

// connected says whether this host's kernel has the connection of flow f, whoever owns its socket, or has had it. A client may use its port
// again while the kernel still remembers its last connection from there (TIME_WAIT), which a SYN ends only where it comes; so what has
// ended before this one's age is another's.
func connected(f tcprepair.Flow, age time.Duration) (presence, error) {
	d, err := openDiagnosis()
	if err != nil {
		return absent, err
	}
	defer d.close()
	s, left, err := d.look(f)
	switch ended := timeWaitTime - left; {
	case err != nil || s == stateNone:
		return absent, err
	case s != stateTimeWait || ended < age:
		return present, nil
	case ended > age+agedBy:
		return absent, nil
	default:
		return unclear, nil
	}
}

// diagnosis asks the kernel about sockets (sock_diag(7)), those of the network namespace in which it was opened. It is used by one
// goroutine at a time.
type diagnosis struct {
	fd       int
	sequence uint32
	question []byte
	answer   [512]byte
}

// Sizes of struct nlmsghdr and struct inet_diag_req_v2, in bytes.
const (
	netlinkHeader = 16
	diagRequest   = 56
)

// sockDiagByFamily is SOCK_DIAG_BY_FAMILY of linux/sock_diag.h.
const sockDiagByFamily = 20

// diagPatience bounds the wait for an answer. The kernel answers within the question's system call.
const diagPatience = time.Second

func openDiagnosis() (*diagnosis, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a diagnosis socket: %w", err)
	}
	limit := unix.NsecToTimeval(diagPatience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open a diagnosis socket: %w", err)
	}
	return &diagnosis{fd: fd}, nil
}

func (d *diagnosis) close() { _ = unix.Close(d.fd) }

// state returns the state of a connection's socket, or of what the kernel keeps of it in TIME_WAIT; stateNone when there is nothing.
func (d *diagnosis) state(f tcprepair.Flow) (tcprepair.State, error) {
	s, _, err := d.look(f)
	return s, err
}

// look is state, and the time until the socket's timer.
func (d *diagnosis) look(f tcprepair.Flow) (tcprepair.State, time.Duration, error) {
	s, timer, err := d.ask(f)
	if err != nil {
		return stateNone, 0, fmt.Errorf("look for the socket of %v: %w", f, err)
	}
	return s, timer, nil
}

func (d *diagnosis) ask(f tcprepair.Flow) (tcprepair.State, time.Duration, error) {
	d.sequence++
	d.question = appendQuestion(d.question[:0], f, d.sequence)
	if err := unix.Sendto(d.fd, d.question, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return stateNone, 0, err
	}
	for {
		n, _, err := unix.Recvfrom(d.fd, d.answer[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return stateNone, 0, err
		}
		if s, mine, err := readAnswer(d.answer[:n], d.sequence); mine {
			return s, timerOf(d.answer[:n]), err
		}
	}
}

// timerOf reads idiag_expires of struct inet_diag_msg, which follows four bytes and struct inet_diag_sockid.
func timerOf(b []byte) time.Duration {
	const at = netlinkHeader + 4 + 48
	if len(b) < at+4 {
		return 0
	}
	return time.Duration(binary.NativeEndian.Uint32(b[at:])) * time.Millisecond
}

// readAnswer returns what the kernel says; false when it is not the answer to the question of this sequence number.
func readAnswer(b []byte, sequence uint32) (s tcprepair.State, mine bool, err error) {
	if len(b) < netlinkHeader+4 || binary.NativeEndian.Uint32(b[8:]) != sequence {
		return stateNone, false, nil
	}
	body := b[netlinkHeader:]
	switch binary.NativeEndian.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
		if errno == unix.ENOENT {
			return stateNone, true, nil
		}
		return stateNone, true, errno
	case sockDiagByFamily:
		// idiag_state of struct inet_diag_msg. Without the connection, the kernel finds who listens for it.
		if s := tcprepair.State(body[1]); s != stateListen {
			return s, true, nil
		}
		return stateNone, true, nil
	}
	return stateNone, true, errors.New("the kernel's answer is of an unknown kind")
}

// appendQuestion appends a request about one TCP socket, in whatever state.
func appendQuestion(b []byte, f tcprepair.Flow, sequence uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, netlinkHeader+diagRequest)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel knows who asks
	family := byte(unix.AF_INET6)
	if f.Local.Addr().Is4() {
		family = unix.AF_INET
	}
	b = append(b, family, unix.IPPROTO_TCP, 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // in any state
	b = binary.BigEndian.AppendUint16(b, f.Local.Port())
	b = binary.BigEndian.AppendUint16(b, f.Remote.Port())
	for _, a := range []netip.Addr{f.Local.Addr(), f.Remote.Addr()} {
		if a.Is4() {
			a4 := a.As4()
			b = append(append(b, a4[:]...), make([]byte, 12)...)
			continue
		}
		a16 := a.As16()
		b = append(b, a16[:]...)
	}
	b = binary.NativeEndian.AppendUint32(b, 0)               // over any interface
	return append(b, 255, 255, 255, 255, 255, 255, 255, 255) // and whatever its cookie is
}
