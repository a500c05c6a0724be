// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// moveTracked moves an echo's server from a to b, with its memory ahead of it. between is called when that has been sent. It returns how many
// bytes the final dump had, and what Track said.
func (e *echo) moveTracked(path string, between func()) (final uint64, tracked, err error) {
	e.t.Helper()
	s, err := readStatus(e.pid)
	if err != nil {
		return 0, nil, err
	}
	tree, err := Tree(e.pid)
	if err != nil {
		return 0, nil, err
	}
	store, err := NewStore(1 << 30)
	if err != nil {
		return 0, nil, err
	}
	defer store.Close()
	if err := store.Reserve(60 << 20); err != nil {
		return 0, nil, err
	}
	in := func(host string, f func() error) error { return labtest.Host(e.t, e.lab, host).Do(f) }
	var chamber *Chamber
	err = in("b", func() (err error) {
		chamber, err = NewChamber(RestoreConfig{Path: path, Root: s.inside(), IDs: tree}, store)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	defer chamber.Close()
	var begin time.Time
	c := DumpConfig{
		Path: path, PID: e.pid, Inside: s.inside(), Processes: len(tree), Sink: store.Write,
		BeforeFreeze: func() error { begin = time.Now(); return nil },
	}
	err = in("a", func() error {
		began := time.Now()
		c.Tracked, tracked = Track(c, 1<<30)
		if c.Tracked == nil {
			return tracked
		}
		defer c.Tracked.Close()
		e.t.Logf("%d rounds of %d bytes in %v: %v", c.Tracked.Rounds(), c.Tracked.Bytes(), time.Since(began), tracked)
		between()
		c.Stopped = func(m Manifest) error {
			final = m.Bytes - c.Tracked.Bytes()
			e.t.Logf("stopped and stored %d bytes after %v", final, time.Since(begin))
			if err := store.Check(m); err != nil {
				return err
			}
			pid, err := chamber.Restore(func(int) error { e.path("b"); return nil }, func() { e.t.Logf("resumed after %v", time.Since(begin)) })
			if err == nil {
				e.pid = pid
				e.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
			}
			return err
		}
		return Dump(c)
	})
	return final, tracked, err
}

// TestTracked sends memory ahead by what the kernel says has changed. It needs a kernel with CONFIG_MEM_SOFT_DIRTY.
func TestTracked(t *testing.T) {
	path := requireCRIU(t)
	f, err := Probe(path)
	if err != nil {
		t.Fatal(err)
	}
	if !f.DirtyTracking {
		t.Skip("this kernel does not track changes of memory (CONFIG_MEM_SOFT_DIRTY)")
	}
	e := newEchoOf(t, strings.Replace(lazyServer, `    if b == b"sum\n":`, `    if b == b"write\n":
        memory[:1 << 20] = os.urandom(1 << 20)
    if b == b"sum\n":`, 1), 16)
	e.say("before")
	sum := ""
	final, tracked, err := e.moveTracked(path, func() {
		e.say("write")
		if sum, err = e.ask("sum"); err != nil {
			t.Fatal(err)
		}
	})
	if tracked != nil || err != nil {
		t.Fatalf("%v, %v", tracked, err)
	}
	// Two processes with 16 MB each and what Python needs, of which one has changed 1 MB.
	if final < 1<<20 || final > 12<<20 {
		t.Errorf("%d bytes came with the final dump", final)
	}
	got, err := e.ask("sum")
	if err != nil || got != sum {
		t.Errorf("the memory was %q, and is %q: %v", sum, got, err)
	}
	e.say("at last")
}

// TestTrackedCannot lets the rounds fail, as they do where the kernel tracks nothing: what has been sent of them does no harm.
func TestTrackedCannot(t *testing.T) {
	path := requireCRIU(t)
	f, err := Probe(path)
	if err != nil {
		t.Fatal(err)
	}
	if f.DirtyTracking {
		t.Skip("this kernel tracks changes of memory: the rounds would succeed")
	}
	e := newEcho(t, 5)
	e.say("before")
	_, tracked, err := e.moveTracked(path, func() {})
	if tracked == nil || err != nil {
		t.Errorf("Track said %v, Dump %v", tracked, err)
	}
	e.say("at last")
}
