// SPDX-License-Identifier: Apache-2.0

package tcprepair_test

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/rehome-net/rehome/tcprepair"
)

// descriptor calls f with the descriptor of a connection.
func descriptor(c *net.TCPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// The source's half: take the connection out, give it to send, and let it go or go on.
func ExampleFreeze() {
	export := func(c *net.TCPConn, send func([]byte) error) error {
		return descriptor(c, func(fd int) error {
			// Here the caller holds the flow's packets.
			if err := tcprepair.Freeze(fd); err != nil {
				return err // nothing has happened
			}
			s, err := tcprepair.Take(fd, tcprepair.Limits{})
			if err != nil {
				return errors.Join(err, tcprepair.Resume(fd))
			}
			b, err := s.AppendBinary(nil)
			if err == nil {
				err = send(b)
			}
			if err != nil {
				return errors.Join(err, tcprepair.Resume(fd))
			}
			return tcprepair.Discard(fd) // the connection lives elsewhere
		})
	}
	_ = export
}

// The target's half.
func ExampleRestore() {
	receive := func(b []byte, pathIsHere func() error) (fd int, err error) {
		s, err := tcprepair.Decode(b, tcprepair.Limits{QueueBytes: 4 << 20})
		if err != nil {
			return -1, err
		}
		r, err := tcprepair.Restore(s, tcprepair.RestoreConfig{})
		if err != nil {
			return -1, err
		}
		if err := pathIsHere(); err != nil {
			return -1, errors.Join(err, r.Discard()) // the source goes on
		}
		if err := r.Thaw(); err != nil {
			return -1, errors.Join(err, r.Reset()) // there is no way back any more
		}
		return r.Disown(), nil
	}
	_ = receive
}

// With the outline sent ahead, the target's socket waits for its snapshot.
func ExampleReserve() {
	prepare := func(outline []byte) (restore func(snapshot []byte) (*tcprepair.Restored, error), err error) {
		o, err := tcprepair.DecodeOutline(outline)
		if err != nil {
			return nil, err
		}
		v, err := tcprepair.Reserve(o, tcprepair.RestoreConfig{})
		if err != nil {
			return nil, err // known before anything was frozen
		}
		return func(b []byte) (*tcprepair.Restored, error) {
			s, err := tcprepair.Decode(b, tcprepair.Limits{})
			if err != nil {
				v.Close()
				return nil, err
			}
			return v.Restore(s)
		}, nil
	}
	_ = prepare
}

func ExampleReadOutline() {
	ahead := func(fd int) ([]byte, error) {
		o, err := tcprepair.ReadOutline(fd)
		if err != nil {
			return nil, err
		}
		return o.AppendBinary(nil)
	}
	_ = ahead
}

// A server's listener must not speak MPTCP, which Go's do by default.
func ExampleFreeze_errors() {
	for _, err := range []error{
		&tcprepair.OpError{Op: "freeze", Err: fmt.Errorf("%w: it is in SYN_SENT", tcprepair.ErrState)},
		&tcprepair.OpError{Op: "freeze", Err: fmt.Errorf("set TCP_REPAIR: %w", syscall.EBADF)},
	} {
		switch {
		case errors.Is(err, tcprepair.ErrState), errors.Is(err, tcprepair.ErrMPTCP), errors.Is(err, tcprepair.ErrULP), errors.Is(err, tcprepair.ErrAuth):
			fmt.Println("this connection stays:", err)
		case errors.Is(err, tcprepair.ErrPermission):
			fmt.Println("no connection can be moved:", err)
		default:
			fmt.Println(err)
		}
	}
	// Output:
	// this connection stays: tcp freeze: connection is not in a state that can be moved: it is in SYN_SENT
	// tcp freeze: set TCP_REPAIR: bad file descriptor
}

func ExampleDecode() {
	_, err := tcprepair.Decode([]byte("not a snapshot"), tcprepair.Limits{})
	fmt.Println(errors.Is(err, tcprepair.ErrCorrupt))
	// Output: true
}

func ExampleParseFlow() {
	f, err := tcprepair.ParseFlow("192.0.2.7:40312-198.51.100.1:443")
	fmt.Println(f.Remote, f.Local, err)
	// Output: 192.0.2.7:40312 198.51.100.1:443 <nil>
}
