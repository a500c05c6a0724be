// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/tcprepair"
)

func testWorker(t *testing.T) *worker {
	t.Helper()
	w, err := newWorker(slog.New(slog.DiscardHandler), newCounters(), func(*peeking, peek.Key) {}, func() {})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestWorkerClosed: who is late must not write into the descriptor that has got the worker's number meanwhile.
func TestWorkerClosed(t *testing.T) {
	w := testWorker(t)
	own, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	w.close()
	next, err := unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, w.wake)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(next)
	if next != w.wake {
		t.Fatalf("descriptor %d, want the worker's %d", next, w.wake)
	}
	if w.post(func() { t.Error("it works on") }) {
		t.Error("a closed worker takes jobs")
	}
	if err := w.do(t.Context(), func() { t.Error("it works on") }); !errors.Is(err, ErrStopped) {
		t.Errorf("do: %v", err)
	}
	if n, err := unix.Read(own, make([]byte, 8)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%d bytes were written into somebody else's descriptor: %v", n, err)
	}
}

// TestWorkerCloseAdopted: connections that are given to a worker that ends are closed, before and after.
func TestWorkerCloseAdopted(t *testing.T) {
	for name, late := range map[string]bool{"just before": false, "after": true} {
		t.Run(name, func(t *testing.T) {
			w := testWorker(t)
			w.buffer = make([]byte, 16)
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[1])
			p := &peeking{fd: pair[0], service: &service{peeking: new(atomic.Int64), forget: func(tcprepair.Flow) {}}}
			if late {
				w.close()
			}
			w.adopt(p, []byte("no"))
			if !late {
				w.close()
			}
			text := make([]byte, 8)
			if n, err := unix.Read(pair[1], text); err != nil || string(text[:n]) != "no" {
				t.Errorf("the client reads %q %v", text[:n], err)
			}
			if err := unix.SetNonblock(pair[1], true); err != nil {
				t.Fatal(err)
			}
			if n, err := unix.Read(pair[1], text); n != 0 || err != nil {
				t.Errorf("the connection is still open: %d %v", n, err)
			}
			if n := p.service.peeking.Load(); late && n != 0 {
				t.Errorf("%d connections are being looked at", n)
			}
		})
	}
}
