// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// tapQueue is the length of a tap's ring, in frames: what may arrive before the process gets to run.
	tapQueue = 4096
	// maxFrame is the largest frame that a tap gives: it has no segmentation offload.
	maxFrame = 1 << 16
)

// tap is where the kernel puts the diverted frames of one interface, and where released ones go back in. The kernel has segmented and
// checksummed what comes out, because the tap offers no offload.
type tap struct {
	file    *os.File
	ifindex int
}

// newTap makes the tap of an interface in the calling thread's network namespace.
func newTap(nl *netlink.Handle, of *netlink.LinkAttrs) (_ *tap, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (CONFIG_TUN, and the device in a container): %w", err)
	}
	request, err := unix.NewIfreq("rhgw%d")
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
	}
	// Only now: a descriptor without a device cannot be polled.
	t := &tap{file: os.NewFile(uintptr(fd), request.Name())}
	defer func() {
		if err != nil {
			_ = t.file.Close()
		}
	}()
	// The tap must be silent: a frame of its own would only cost the reader time.
	quiet := "/proc/sys/net/ipv6/conf/" + request.Name() + "/disable_ipv6"
	if err := os.WriteFile(quiet, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("silence IPv6 on the tap: %w", err)
	}
	link, err := nl.LinkByName(request.Name())
	if err != nil {
		return nil, fmt.Errorf("tap %s: %w", request.Name(), err)
	}
	t.ifindex = link.Attrs().Index
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"queue length", func() error { return nl.LinkSetTxQLen(link, tapQueue) }},
		{"no ARP", func() error { return nl.LinkSetARPOff(link) }},
		{"MTU", func() error { return nl.LinkSetMTU(link, min(of.MTU, maxFrame-1)) }},
		{"up", func() error { return nl.LinkSetUp(link) }},
	} {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("tap %s: %s: %w", request.Name(), step.what, err)
		}
	}
	return t, nil
}

// read waits for a frame and returns a copy of it. scratch is room for the largest.
func (t *tap) read(scratch []byte) ([]byte, error) {
	n, err := t.file.Read(scratch)
	if err != nil {
		return nil, fmt.Errorf("read tap: %w", err)
	}
	return append([]byte(nil), scratch[:n]...), nil
}

// release gives a frame back to where it was diverted.
func (t *tap) release(frame []byte) error {
	if _, err := t.file.Write(frame); err != nil {
		return fmt.Errorf("write tap: %w", err)
	}
	return nil
}

func (t *tap) close() error { return t.file.Close() }
