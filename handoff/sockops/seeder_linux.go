// SPDX-License-Identifier: Apache-2.0

package sockops

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// maxWindow is where a claim stops being believable: 64 Ki packets are 750 MB/s at 120 ms.
const maxWindow = 1 << 16

// Seeder sets the first congestion window of chosen sockets. Its methods are safe for concurrent use.
type Seeder struct {
	objects seedObjects
	link    link.Link
}

// Open attaches to the cgroup v2 directory; empty means that of this process. Nothing is left when the process ends.
//
// Errors to expect: ErrPermission, ErrUnsupported, ErrNoCgroup.
func Open(cgroup string) (*Seeder, error) {
	s := &Seeder{}
	if err := s.open(cgroup); err != nil {
		return nil, fmt.Errorf("seed congestion windows: %w", explain(err))
	}
	return s, nil
}

func (s *Seeder) open(cgroup string) error {
	if cgroup == "" {
		var err error
		if cgroup, err = ownCgroup(); err != nil {
			return err
		}
	}
	if _, err := os.Stat(cgroup); err != nil {
		return err
	}
	if err := loadSeedObjects(&s.objects, nil); err != nil {
		return err
	}
	var err error
	s.link, err = link.AttachCgroup(link.CgroupOptions{Path: cgroup, Attach: ebpf.AttachCGroupSockOps, Program: s.objects.RehomeSeed})
	if err != nil {
		return errors.Join(fmt.Errorf("attach to cgroup %s: %w", cgroup, err), s.objects.Close())
	}
	return nil
}

func ownCgroup() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoCgroup, err)
	}
	p, ok := cgroupPath(string(mounts), string(own))
	if !ok {
		return "", ErrNoCgroup
	}
	return p, nil
}

func explain(err error) error {
	var refused *ebpf.VerifierError
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &refused):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	return err
}

// Seed makes the window of the socket packets wide as soon as it connects. The socket must have been made by a process
// in the cgroup, and must not be connected yet. Values beyond 65,536 packets are cut.
func (s *Seeder) Seed(fd int, packets uint32) error {
	if packets == 0 {
		return errors.New("seed congestion window: 0 packets")
	}
	cookie, err := socketCookie(fd)
	if err == nil {
		err = put(s.objects.Seeds, cookie, seedSeed{Cwnd: min(packets, maxWindow)})
	}
	if err != nil {
		return fmt.Errorf("seed congestion window: %w", err)
	}
	return nil
}

// put is Map.Put without Go's scheduler, which would wake its monitor while a frozen connection waits.
func put(m *ebpf.Map, cookie uint64, seed seedSeed) error {
	attr := struct {
		fd         uint32
		_          uint32
		key, value uint64
		flags      uint64
	}{fd: uint32(m.FD())}
	pin := new(runtime.Pinner)
	defer pin.Unpin()
	pin.Pin(&cookie)
	pin.Pin(&seed)
	attr.key, attr.value = uint64(uintptr(unsafe.Pointer(&cookie))), uint64(uintptr(unsafe.Pointer(&seed)))
	_, _, errno := unix.RawSyscall(unix.SYS_BPF, unix.BPF_MAP_UPDATE_ELEM, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return errno
	}
	return nil
}

// Forget takes a seed back whose socket will not connect. One that is used up is no error.
func (s *Seeder) Forget(fd int) error {
	cookie, err := socketCookie(fd)
	if err == nil {
		err = s.objects.Seeds.Delete(cookie)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("forget congestion window: %w", err)
	}
	return nil
}

// Close detaches the program.
func (s *Seeder) Close() error {
	return errors.Join(s.link.Close(), s.objects.Close())
}

func socketCookie(fd int) (uint64, error) {
	var cookie uint64
	size := uint32(unsafe.Sizeof(cookie))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE,
		uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("socket cookie: %w", errno)
	}
	return cookie, nil
}
