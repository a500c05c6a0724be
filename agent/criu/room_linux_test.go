// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRoomFor(t *testing.T) {
	for _, tt := range []struct {
		name   string
		queued int
		window uint32
		want   int
	}{
		{"nothing", 0, 0, 0},
		{"a window", 0, 3 << 20, 6 << 20},
		{"a window behind a queue", 1 << 20, 3 << 20, 8 << 20},
		{"the queue of a socket that is closed", -1, 4096, 8192},
		{"more than the kernel takes", 1 << 20, 1<<32 - 1, 1 << 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := roomFor(tt.queued, tt.window); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

// pair returns the descriptors of a connection's two ends: what is written to the second waits at the first.
func pair(t *testing.T) (at, from int) {
	t.Helper()
	var cfg net.ListenConfig
	cfg.SetMultipathTCP(false)
	ln, err := cfg.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() //nolint:errcheck // nothing was written
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	near, err := new(net.Dialer).DialContext(ctx, "tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	descriptor := func(c net.Conn) int {
		t.Cleanup(func() { _ = c.Close() })
		f, err := c.(*net.TCPConn).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return int(f.Fd())
	}
	return descriptor(far), descriptor(near)
}

func receiveBuffer(t *testing.T, fd int) (size, locks int) {
	t.Helper()
	var errs [2]error
	size, errs[0] = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	locks, errs[1] = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return size, locks
}

// TestMakeRoom makes room for a window that was offered when the buffer was larger, as that of a connection is whose segments have become less dense.
func TestMakeRoom(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Skip("setting a buffer past the host's limits needs CAP_NET_ADMIN")
	}
	const receiveLocked = 2
	for _, locked := range []int{0, receiveLocked} {
		at, from := pair(t)
		if _, err := unix.Write(from, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		info, err := unix.GetsockoptTCPInfo(at, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			t.Fatal(err)
		}
		if info.Rcv_wnd == 0 {
			t.Skip("this kernel does not tell a socket's window (Linux 6.2)")
		}
		if err := unix.SetsockoptInt(at, unix.SOL_SOCKET, unix.SO_RCVBUF, int(info.Rcv_wnd)/4); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetsockoptInt(at, unix.SOL_SOCKET, unix.SO_BUF_LOCK, locked); err != nil {
			t.Fatal(err)
		}
		if size, _ := receiveBuffer(t, at); size >= int(info.Rcv_wnd) {
			t.Fatalf("a buffer of %d bytes for a window of %d", size, info.Rcv_wnd)
		}
		if err := makeRoomFor(at); err != nil {
			t.Fatal(err)
		}
		size, locks := receiveBuffer(t, at)
		if want := 2 * (1000 + int(info.Rcv_wnd)); size < want-1 || locks != locked {
			t.Errorf("%d bytes, locks %d; want %d, and locks %d", size, locks, want, locked)
		}
		if err := makeRoomFor(at); err != nil {
			t.Fatal(err)
		}
		if again, _ := receiveBuffer(t, at); again != size {
			t.Errorf("%d bytes, and %d when asked again", size, again)
		}
	}
}

func TestMakeRoomForNoSocket(t *testing.T) {
	f := make([]int, 2)
	if err := unix.Pipe2(f, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(f[0]) //nolint:errcheck // nothing was written
	defer unix.Close(f[1]) //nolint:errcheck // nothing was written
	if err := makeRoomFor(f[0]); !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("%v, want %v", err, unix.ENOTSOCK)
	}
}
