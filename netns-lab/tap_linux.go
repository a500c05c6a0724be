// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tapQueue is the length of a tap's own queue in packets. The kernel drops at the tail there without slowing the sender, so it must hold
// the largest burst: a whole congestion window.
const tapQueue = 16384

// tap is a network interface whose packets a process reads and writes. Without a vnet header the kernel cuts super-packets into
// segments and fills in checksums before they are read.
type tap struct {
	name string
	fd   int // owned, non-blocking; closing it removes the interface
}

// openTap makes an interface in the network namespace of the calling thread.
func openTap(name string) (*tap, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("tap %s: open /dev/net/tun (wants the tun module): %w", name, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s (wants CAP_NET_ADMIN): %w", name, err), unix.Close(fd))
	}
	return &tap{name: name, fd: fd}, nil
}

func (t *tap) close() error { return unix.Close(t.fd) }

// read takes one frame; EAGAIN if there is none.
func (t *tap) read(frame []byte) (int, error) { return transfer(unix.SYS_READ, t.fd, frame) }

// write sends one frame. The kernel carries it through the bridges and, often, all the way into the receiver's socket before it returns.
func (t *tap) write(frame []byte) error {
	_, err := transfer(unix.SYS_WRITE, t.fd, frame)
	return err
}

// transfer makes a system call that does not block, so the Go scheduler need not hear of it: unix.Read and unix.Write would give the processor to another
// goroutine now and then, and wait for a free one before going on.
func transfer(call uintptr, fd int, frame []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(frame))), uintptr(len(frame)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
