// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func openFiles(tb testing.TB) int {
	tb.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(d)
}

// snapshotOf freezes and reads the server's end.
func snapshotOf(tb testing.TB, p *pair) *Snapshot {
	tb.Helper()
	var err error
	p.serverHost.do(func() { err = Freeze(p.server) })
	if err != nil {
		tb.Fatal(err)
	}
	s, err := Take(p.server, Limits{})
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestResume takes a snapshot of every state and content, and lets the source go on.
func TestResume(t *testing.T) {
	w := newWire(t)
	for _, state := range []State{Established, FinWait1, FinWait2, CloseWait, LastAck, Closing} {
		for _, c := range contents() {
			if impossible(state, c) != "" {
				continue
			}
			t.Run(state.String()+"/"+string(c), func(t *testing.T) {
				w.forget()
				defer w.dump(t)
				p := w.connect(t, v4, func(listener, client int) { smallWindows(t, c, listener, client) })
				s := &stream{p: p}
				w.arrange(t, s, state, c)
				snapshotOf(t, p)
				if err := Resume(p.server); err != nil {
					t.Fatal(err)
				}
				w.finish(t, s, state)
			})
		}
	}
}

func TestRestoreTwice(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	s := snapshotOf(t, p)
	var first, second *Restored
	var err, again, missing error
	w.b.do(func() {
		first, err = Restore(s, RestoreConfig{})
		second, again = Restore(s, RestoreConfig{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if second != nil || !errors.Is(again, ErrInUse) {
		t.Errorf("a second restore: %v", again)
	}
	w.client.do(func() { _, missing = Restore(s, RestoreConfig{}) })
	if !errors.Is(missing, ErrAddress) {
		t.Errorf("without the address: %v", missing)
	}
	hook := errors.New("hook")
	w.a.do(func() { _, err = Restore(s, RestoreConfig{BeforeConnect: func(int) error { return hook }}) })
	if !errors.Is(err, hook) {
		t.Errorf("a hook that fails: %v", err)
	}
	bad := *s
	bad.Window.MaxSend = 0
	w.b.do(func() { _, err = Restore(&bad, RestoreConfig{}) })
	if !errors.Is(err, ErrCorrupt) {
		t.Errorf("a snapshot that no kernel would take: %v", err)
	}
	if err := first.Discard(); err != nil {
		t.Fatal(err)
	}
	if first.FD() != -1 || first.Thaw() == nil || first.Reset() == nil || first.Discard() == nil {
		t.Error("a discarded connection can be used")
	}
	if err := Resume(p.server); err != nil {
		t.Fatal(err)
	}
	talk(t, p)
}

// TestEarlyUser passes the descriptor on before the thaw, as an agent does: what the application tries too early fails, and does not matter.
func TestEarlyUser(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	writeAll(t, p.client, ramp(0, 50))
	waitFor(t, "data", func() bool { n, _, _ := queues(t, p.server); return n == 50 })
	w.hold(true, false)
	s := snapshotOf(t, p)
	if err := Discard(p.server); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(p.server, make([]byte, 1)); !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("the former owner sees %v", err)
	}
	var r *Restored
	var err error
	w.b.do(func() { r, err = Restore(s, RestoreConfig{}) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	app, err := unix.Dup(r.FD())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(app) }()
	if n, err := unix.Write(app, []byte("too early")); err == nil {
		t.Errorf("an early write of %d bytes", n)
	}
	if n, err := unix.Read(app, make([]byte, 9)); err == nil {
		t.Errorf("an early read of %d bytes", n)
	}
	w.own(w.b)
	if err := r.Thaw(); err != nil {
		t.Fatal(err)
	}
	w.hold(false, false)
	if got := readExactly(t, app, 50); !bytes.Equal(got, ramp(0, 50)) {
		t.Errorf("got %v", got)
	}
	talk(t, &pair{client: p.client, server: app})
	if err := r.Reset(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the reset", func() bool {
		_, err := unix.Read(p.client, make([]byte, 1))
		return errors.Is(err, unix.ECONNRESET)
	})
}

func TestReset(t *testing.T) {
	w := newWire(t)
	for _, frozen := range []bool{false, true} {
		p := w.connect(t, v6, nil)
		if frozen {
			snapshotOf(t, p)
		}
		if err := Reset(p.server); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the reset", func() bool {
			_, err := unix.Read(p.client, make([]byte, 1))
			return errors.Is(err, unix.ECONNRESET)
		})
	}
}

// TestDiscardIsSilent restores and discards: the client hears nothing of it.
func TestDiscardIsSilent(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	s := snapshotOf(t, p)
	before, _ := w.count(w.a)
	if err := Discard(p.server); err != nil {
		t.Fatal(err)
	}
	var r *Restored
	var err error
	w.a.do(func() { // on the same host: the discarded connection is no obstacle
		r, err = Restore(s, RestoreConfig{})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	w.settle(t, w.a)
	if after, _ := w.count(w.a); after != before {
		t.Errorf("%d packets", after-before)
	}
}
