// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tapQueue is the length of a tap's ring, in frames: what may arrive before the process gets to run.
const tapQueue = 16384

// Where a frame given back through the tap is to go: its destination MAC; see bpf/gate.c.
const (
	toStack = "\x02reho\x01" // the local stack, whatever the table says
	toTable = "\x02reho\x02" // through the gate once more
	toWire  = "\x02reho\x03" // out of the interface; as source MAC
)

// tap is where the kernel puts what is held on one interface, and where released frames go back in. The kernel has
// segmented and checksummed what comes out, because the tap offers no offload.
type tap struct {
	file      *os.File
	conn      syscall.RawConn
	fd        int
	ifindex   int // of the tap
	port      gatePort
	scratch   []byte
	injecting []byte
}

// newTap makes the tap of an interface in the calling thread's network namespace.
func newTap(nl *netlink.Handle, of *netlink.LinkAttrs) (_ *tap, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (CONFIG_TUN, and the device in a container): %w", err)
	}
	request, err := unix.NewIfreq("rhtap%d")
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
	}
	t := &tap{
		file: os.NewFile(uintptr(fd), request.Name()), fd: fd,
		scratch: make([]byte, maxFrame+ethernetHeader), injecting: make([]byte, 0, maxFrame+ethernetHeader),
	}
	defer func() {
		if err != nil {
			_ = t.file.Close()
		}
	}()
	if t.conn, err = t.file.SyscallConn(); err != nil {
		return nil, err
	}
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
	t.port = gatePort{Ifindex: uint32(of.Index)}
	copy(t.port.Mac[:], of.HardwareAddr)
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

// drain hands at most limit waiting frames to keep, which must copy what it wants. It returns their number; fewer than
// limit means that the tap was empty.
func (t *tap) drain(limit int, keep func(frame []byte)) (int, error) {
	for n := range limit {
		size, errno := promptly(unix.SYS_READ, t.fd, t.scratch)
		switch errno {
		case 0:
		case unix.EAGAIN:
			return n, nil
		case unix.EINTR:
			continue
		default:
			return n, fmt.Errorf("read tap: %w", errno)
		}
		keep(t.scratch[:size])
	}
	return limit, nil
}

// inject writes frames in order to where their new destination says. It returns how many the kernel took.
func (t *tap) inject(frames [][]byte, to string) (int, error) {
	if len(frames) > 1 {
		// A frame enters the stack through the backlog queue of the CPU that writes it: on one CPU order is kept.
		defer stayOnCPU()()
	}
	for i, frame := range frames {
		if err := t.injectOne(frame, to); err != nil {
			return i, err
		}
	}
	return len(frames), nil
}

func (t *tap) injectOne(frame []byte, to string) error {
	t.injecting = append(append(t.injecting[:0], to...), frame[len(to):]...)
	if err := write(t.fd, t.injecting); err != nil {
		return fmt.Errorf("write tap: %w", err)
	}
	return nil
}

// forward writes frames, in order, that go out of the interface to another host, whatever the table says.
func (t *tap) forward(frames [][]byte, mac []byte) error {
	if len(frames) > 1 {
		defer stayOnCPU()()
	}
	for i, frame := range frames {
		t.injecting = append(append(append(t.injecting[:0], mac...), toWire...), frame[2*len(mac):]...)
		if err := write(t.fd, t.injecting); err != nil {
			return fmt.Errorf("%d of %d held frames lost: write tap: %w", len(frames)-i, len(frames), err)
		}
	}
	return nil
}

// send writes a frame of this host that goes out of the interface. It overwrites the source MAC.
func (t *tap) send(frame []byte) error {
	copy(frame[6:], toWire)
	if err := write(t.fd, frame); err != nil {
		return fmt.Errorf("write tap: %w", err)
	}
	return nil
}

func write(fd int, frame []byte) error {
	for {
		switch _, errno := promptly(unix.SYS_WRITE, fd, frame); errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// promptly reads or writes a tap. It does not make anybody wait, so Go's scheduler need not hear of it: it would wake its monitor.
func promptly(call uintptr, fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// stayOnCPU keeps the calling goroutine on the CPU it is on, as far as that is possible, and returns what ends that.
func stayOnCPU() (leave func()) {
	runtime.LockOSThread()
	var before, here unix.CPUSet
	cpu, ok := currentCPU()
	if !ok || unix.SchedGetaffinity(0, &before) != nil {
		return runtime.UnlockOSThread
	}
	here.Set(cpu)
	if unix.SchedSetaffinity(0, &here) != nil {
		return runtime.UnlockOSThread
	}
	return func() {
		if unix.SchedSetaffinity(0, &before) == nil {
			runtime.UnlockOSThread()
		}
		// Otherwise the thread stays locked and ends with its goroutine.
	}
}

func (t *tap) close() error { return t.file.Close() }

// isEthernet reports whether frames on the interface have Ethernet headers.
func isEthernet(a *netlink.LinkAttrs) bool {
	return a.EncapType == "ether" || strings.HasPrefix(a.EncapType, "loopback")
}
