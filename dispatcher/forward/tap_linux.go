// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxFrame is the largest frame that a tap carries: an IP packet and its Ethernet header.
const maxFrame = 1<<16 + ethernetHeader

// tap is where the kernel puts what user space is to see, and where it takes it back. It offers no offload: the kernel segments
// and checksums what comes out.
type tap struct {
	file    *os.File
	conn    syscall.RawConn
	fd      int // for reading, while conn.Read holds it
	ifindex int
	back    link.Link
	scratch []byte
	reading sync.Mutex // somebody is in Divert
}

// openTap makes the tap, in the calling thread's network namespace, and tells the programs of it.
func (f *Forwarder) openTap() error {
	mtu := 0
	for _, p := range f.points {
		mtu = max(mtu, p.mtu)
	}
	t, err := newTap(f.nl, mtu, f.config.DivertQueue)
	if err != nil {
		return err
	}
	f.tap = t
	t.back, err = link.AttachTCX(link.TCXOptions{
		Interface: t.ifindex, Program: f.table.objects.RehomeBack, Attach: ebpf.AttachTCXIngress,
	})
	if err != nil {
		return fmt.Errorf("attach to the tap: %w", err)
	}
	return f.table.setTap(t.ifindex)
}

func newTap(nl *netlink.Handle, mtu, queue int) (_ *tap, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (CONFIG_TUN, and the device in a container): %w", err)
	}
	request, err := unix.NewIfreq("rhfwd%d")
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
	}
	t := &tap{file: os.NewFile(uintptr(fd), request.Name()), fd: fd, scratch: make([]byte, maxFrame)}
	defer func() {
		if err != nil {
			_ = t.file.Close()
		}
	}()
	if t.conn, err = t.file.SyscallConn(); err != nil {
		return nil, err
	}
	// Frames of its own would only cost the reader time.
	quiet := "/proc/sys/net/ipv6/conf/" + request.Name() + "/disable_ipv6"
	if err := os.WriteFile(quiet, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("silence IPv6 on the tap: %w", err)
	}
	l, err := nl.LinkByName(request.Name())
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", request.Name(), err)
	}
	t.ifindex = l.Attrs().Index
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"queue length", func() error { return nl.LinkSetTxQLen(l, queue) }},
		{"no ARP", func() error { return nl.LinkSetARPOff(l) }},
		{"MTU", func() error { return nl.LinkSetMTU(l, min(mtu, maxFrame-ethernetHeader-1)) }},
		{"up", func() error { return nl.LinkSetUp(l) }},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("tap %s: %s: %w", request.Name(), step.what, err)
		}
	}
	return t, nil
}

// read returns the next frame, which is valid until the next call; nil when none waits.
func (t *tap) read() ([]byte, error) {
	for {
		n, err := unix.Read(t.fd, t.scratch)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read the tap: %w", err)
		}
		return t.scratch[:n], nil
	}
}

// write gives a frame to rehome_back. When it returns, the frame has left the tap.
func (t *tap) write(frame []byte) error {
	var failed error
	err := t.conn.Write(func(fd uintptr) bool {
		for {
			if _, failed = unix.Write(int(fd), frame); !errors.Is(failed, unix.EINTR) {
				return true
			}
		}
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("write the tap: %w", err)
	}
	return nil
}

func (t *tap) close() error {
	var errs []error
	if t.back != nil {
		errs = append(errs, t.back.Close())
	}
	return errors.Join(append(errs, t.file.Close())...)
}
