// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func open(t testing.TB) *Seeder {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: attaches a BPF program to a cgroup")
	}
	s, err := Open("")
	if errors.Is(err, ErrNoCgroup) || errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// repaired is a socket in repair mode, as restore makes it, about to connect to nobody.
func repaired(t testing.TB, family int) int {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_ON); err != nil {
		t.Fatalf("repair mode: %v", err)
	}
	// TCP_SEND_QUEUE and TCP_RECV_QUEUE.
	for queue, sequence := range map[int]int{2: 1000, 1: 2000} {
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ, sequence),
		); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func connect(t testing.TB, fd, family int) uint32 {
	t.Helper()
	var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}
	if family == unix.AF_INET6 {
		to = &unix.SockaddrInet6{Addr: [16]byte{15: 1}, Port: 9}
	}
	if err := unix.Connect(fd, to); err != nil {
		t.Fatalf("connect in repair mode: %v", err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return info.Snd_cwnd
}

func (s *Seeder) pending(t *testing.T) (n int) {
	t.Helper()
	var k uint64
	var v seedSeed
	for it := s.objects.Seeds.Iterate(); it.Next(&k, &v); {
		n++
	}
	return n
}

func TestSeed(t *testing.T) {
	s := open(t)
	for _, c := range []struct {
		name       string
		family     int
		seed, want uint32
	}{
		{"IPv4", unix.AF_INET, 200, 200},
		{"IPv6", unix.AF_INET6, 321, 321},
		{"one", unix.AF_INET, 1, 1},
		{"beyond belief", unix.AF_INET, 1 << 30, maxWindow},
		{"none", unix.AF_INET, 0, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd := repaired(t, c.family)
			if c.seed != 0 {
				if err := s.Seed(fd, c.seed); err != nil {
					t.Fatal(err)
				}
			}
			if got := connect(t, fd, c.family); got != c.want {
				t.Errorf("window %d packets, want %d", got, c.want)
			}
			if n := s.pending(t); n != 0 {
				t.Errorf("%d seeds left", n)
			}
		})
	}
}

func TestForget(t *testing.T) {
	s := open(t)
	fd, other := repaired(t, unix.AF_INET), repaired(t, unix.AF_INET)
	for _, fd := range []int{fd, other} {
		if err := s.Seed(fd, 77); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.Forget(fd); err != nil {
			t.Fatal(err)
		}
	}
	if got := connect(t, fd, unix.AF_INET); got != 10 {
		t.Errorf("forgotten seed: window %d", got)
	}
	if got := connect(t, other, unix.AF_INET); got != 77 {
		t.Errorf("the other's seed: window %d", got)
	}
}

func TestErrors(t *testing.T) {
	s := open(t)
	if err := s.Seed(-1, 10); !errors.Is(err, unix.EBADF) {
		t.Errorf("Seed of no socket: %v", err)
	}
	if err := s.Seed(repaired(t, unix.AF_INET), 0); err == nil {
		t.Error("Seed of 0 packets succeeded")
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("Open of a directory that is no cgroup succeeded")
	}
	if _, err := Open("/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
}

func TestWithoutCapabilities(t *testing.T) {
	open(t)
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			result <- err
			return
		}
		_, err := Open("")
		result <- err
	}()
	if err := <-result; !errors.Is(err, ErrPermission) {
		t.Errorf("Open = %v, want ErrPermission", err)
	}
}

// Closed, nothing of it is left.
func TestClose(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	s, err := Open("")
	if err != nil {
		t.Skip(err)
	}
	info, err := s.objects.RehomeSeed.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	fd := repaired(t, unix.AF_INET)
	if err := s.Seed(fd, 50); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := connect(t, fd, unix.AF_INET); got != 10 {
		t.Errorf("closed: window %d", got)
	}
	unloaded(t, id)
}

// unloaded waits until the kernel has no such program any more: detaching is deferred.
func unloaded(t *testing.T, id ebpf.ProgramID) {
	t.Helper()
	for range 1000 {
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err == nil {
			_ = p.Close()
		}
		runtime.Gosched()
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	t.Error("the program is still loaded")
}

func BenchmarkSeed(b *testing.B) {
	s := open(b)
	fd := repaired(b, unix.AF_INET)
	for b.Loop() {
		if err := s.Seed(fd, 100); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Forget(fd)
}
