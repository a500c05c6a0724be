// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Prompt returns conn with other system calls for reading and writing, if it has a descriptor: the same, but Go's scheduler does not hear
// of them. None of them waits, as the descriptor is non-blocking; a scheduler that hears of each wakes its monitor, a thread that takes
// the processor for a moment, just when somebody waits for the frame. One goroutine may read and one may write at a time.
func Prompt(conn net.Conn) net.Conn {
	raw := rawOf(conn)
	if raw == nil {
		return conn
	}
	return newPrompt(conn, raw)
}

type prompt struct {
	net.Conn
	raw syscall.RawConn
	in  transfer
	out transfer
}

func newPrompt(conn net.Conn, raw syscall.RawConn) *prompt {
	p := &prompt{Conn: conn, raw: raw}
	p.in.init(unix.SYS_RECVMSG, unix.MSG_CMSG_CLOEXEC)
	p.out.init(unix.SYS_SENDMSG, unix.MSG_NOSIGNAL)
	return p
}

// SyscallConn implements syscall.Conn.
func (p *prompt) SyscallConn() (syscall.RawConn, error) { return p.raw, nil }

// Read implements net.Conn.
func (p *prompt) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	n, _, _, err := p.receive(b, nil)
	return n, err
}

// receive reads bytes, and control messages that come with them. Like Read it returns io.EOF, bare, at the end.
func (p *prompt) receive(b, oob []byte) (n, oobn, flags int, err error) {
	t := &p.in
	t.aim(b, oob)
	if err := p.raw.Read(t.do); err != nil {
		return 0, 0, 0, err
	}
	if t.errno != 0 {
		return 0, 0, 0, p.failed("read", "recvmsg", t.errno)
	}
	if t.n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return t.n, t.oobn, t.flags, err
}

// Write implements net.Conn.
func (p *prompt) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := p.send(b[written:], nil)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// send writes once: some of the bytes, and all of the control message.
func (p *prompt) send(b, oob []byte) (int, error) {
	t := &p.out
	t.aim(b, oob)
	if err := p.raw.Write(t.do); err != nil {
		return 0, err
	}
	if t.errno != 0 {
		return 0, p.failed("write", "sendmsg", t.errno)
	}
	return t.n, nil
}

func (p *prompt) failed(op, call string, errno syscall.Errno) error {
	a := p.LocalAddr()
	return &net.OpError{Op: op, Net: a.Network(), Source: a, Addr: p.RemoteAddr(), Err: os.NewSyscallError(call, errno)}
}

// transfer is one direction's system call. It is on the heap, as the kernel is given addresses in it.
type transfer struct {
	do    func(fd uintptr) bool
	msg   unix.Msghdr
	iov   unix.Iovec
	n     int
	oobn  int
	flags int
	errno syscall.Errno
}

func (t *transfer) init(call, flags uintptr) {
	t.do = func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(&t.msg)), flags)
			switch errno {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			}
			t.n, t.errno = int(n), errno
			t.oobn, t.flags = int(t.msg.Controllen), int(t.msg.Flags)
			t.msg, t.iov = unix.Msghdr{}, unix.Iovec{} // the buffers are the caller's again
			return true
		}
	}
}

// aim says which memory the next call is about.
func (t *transfer) aim(b, oob []byte) {
	t.iov = unix.Iovec{Base: unsafe.SliceData(b)}
	t.iov.SetLen(len(b))
	t.msg = unix.Msghdr{Iov: &t.iov}
	t.msg.SetIovlen(1)
	if len(oob) > 0 {
		t.msg.Control = unsafe.SliceData(oob)
		t.msg.SetControllen(len(oob))
	}
}

// unsent returns how many bytes wait in a socket for the peer (SIOCOUTQ).
func unsent(fd uintptr) (int, syscall.Errno) {
	var n int32
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, fd, unix.TIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	return int(n), errno
}
