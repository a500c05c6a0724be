// SPDX-License-Identifier: Apache-2.0

package handoff_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff"
)

func TestServeHandlesAndCloses(t *testing.T) {
	ln, err := handoff.Listen(t.Context(), "tcp", "127.0.0.1:0", handoff.Config{Service: "greeting", Agent: t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan error, 1)
	go func() { over <- ln.Serve(func(c *handoff.Conn) { _, _ = io.WriteString(c, "hello") }) }()
	for range 3 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		// All of it, which ends because Serve closes the connection.
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
			t.Errorf("the client read %q, %v", got, err)
		}
		_ = c.Close()
	}
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve ended with %v, want net.ErrClosed", err)
	}
}

// TestServeOutlivesDescriptors has a server run out of descriptors: it goes on when there are some again.
func TestServeOutlivesDescriptors(t *testing.T) {
	warned := make(chan struct{}, 100)
	log := slog.New(slog.NewTextHandler(writerFunc(func(b []byte) (int, error) {
		if bytes.Contains(b, []byte("too many open files")) {
			warned <- struct{}{}
		}
		return len(b), nil
	}), nil))
	ln, err := handoff.Listen(t.Context(), "tcp4", "127.0.0.1:0", handoff.Config{Service: "greeting", Agent: t.TempDir() + "/none", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(client), "client")
	defer conn.Close()
	over := make(chan error, 1)
	go func() { over <- ln.Serve(func(c *handoff.Conn) { _, _ = io.WriteString(c, "hello") }) }()
	restore := noDescriptors(t)
	addr, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}); err != nil {
		t.Error(err)
	}
	for range 3 {
		select {
		case <-warned:
		case err := <-over:
			t.Fatalf("Serve ended with %v", err)
		case <-time.After(10 * time.Second):
			t.Error("Serve found descriptors")
		}
	}
	restore()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("the client read %q, %v", got, err)
	}
	// It ends at once when the listener is closed, whatever it waits for.
	restore = noDescriptors(t)
	if err := ln.Close(); err != nil {
		t.Error(err)
	}
	restore()
	if err := <-over; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve ended with %v, want net.ErrClosed", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// noDescriptors leaves this process none, until the end of the test or the call of restore.
func noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore = func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(restore)
	return restore
}
