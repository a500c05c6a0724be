// SPDX-License-Identifier: Apache-2.0

package report

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// smallListener listens with a backlog of 4, and accepts nothing.
func smallListener(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 4); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in, ok := name.(*unix.SockaddrInet4)
	if !ok {
		t.Fatalf("%T", name)
	}
	return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
}

func clientsOf(t *testing.T, at netip.AddrPort, n int) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", at.String(), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

// TestKernel reads this machine, and sees what the test does to it.
func TestKernel(t *testing.T) {
	at := smallListener(t)
	six, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer six.Close()
	k := openKernel(procPath)
	defer k.close()
	last, err := k.read()
	if err != nil {
		t.Logf("cannot be read here: %v", err)
	}
	if got := missing(last, []netip.AddrPort{at, netip.MustParseAddrPort(six.Addr().String())}); !last.listened || len(got) > 0 {
		t.Errorf("listeners were read: %v, without %v", last.listened, got)
	}
	clientsOf(t, at, 3)
	// The parent's ticks are of 10 ms: burn some.
	for until := time.Now().Add(60 * time.Millisecond); time.Now().Before(until); {
		_ = syscall.Getpid()
	}
	now, _ := k.read()
	parts := shares(last, now, []netip.AddrPort{at})
	for _, p := range []vitals.Part{vitals.CPU, vitals.Memory, vitals.Backlog} {
		if x, ok := parts[p].Float(); !ok || x == 0 {
			t.Errorf("%v is %v, known %v, although something of it is in use", p, x, ok)
		}
	}
	if parts[vitals.Backlog] != vitals.ShareOf(0.75) {
		t.Errorf("3 of 4 wait: %v", parts[vitals.Backlog])
	}
	if got := missing(now, addresses("127.0.0.1:1")); len(got) != 1 {
		t.Errorf("somebody listens at port 1: %v", got)
	}
}

// TestKernelWithout: a machine that tells nothing has no load, and says why.
func TestKernelWithout(t *testing.T) {
	k := openKernel(t.TempDir())
	defer k.close()
	r, err := k.read()
	if err == nil || r.cpu != nil || r.memory != nil || r.network != nil || r.stalledIO != nil || r.disks != nil {
		t.Errorf("%+v, %v", r, err)
	}
	if !r.listened {
		t.Error("sock_diag needs no /proc")
	}
}

// TestKernelWithoutPressure: the disks' own times count where the kernel keeps no pressure.
func TestKernelWithoutPressure(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "diskstats"), []byte(file(t, "diskstats")), 0o644); err != nil {
		t.Fatal(err)
	}
	k := openKernel(dir)
	defer k.close()
	if r, _ := k.read(); r.disks["vda"] != 61_240 || r.stalledIO != nil {
		t.Errorf("%+v", r)
	}
}

func BenchmarkRead(b *testing.B) {
	k := openKernel(procPath)
	defer k.close()
	b.ReportAllocs()
	for b.Loop() {
		_, _ = k.read()
	}
}
