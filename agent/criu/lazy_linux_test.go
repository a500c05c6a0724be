// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// lazyServer is server with a checksum of its memory, and a child that has memory, too.
const lazyServer = `
import socket, sys, os, hashlib
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("%s", 7))
s.listen(5)
memory = bytearray(os.urandom(%d << 20))
there, here = socket.socketpair()
if os.fork() == 0:
    memory[::4096] = b"\7" * len(memory[::4096])
    while True:
        there.recv(1)
        there.send(hashlib.sha256(memory).hexdigest().encode())
c, a = s.accept()
while True:
    b = c.recv(1000)
    if not b:
        break
    if b == b"sum\n":
        here.send(b"?")
        b = (hashlib.sha256(memory).hexdigest() + " " + here.recv(100).decode() + "\n").encode()
    c.sendall(b)
`

// lazyMove moves an echo's server from a to b, and its memory when it runs there. serve, which may be nil, is asked before each answer.
type lazyMove struct {
	*echo
	path  string
	serve func(n int) error
	// restored is called when everything is there, resumed when the tree runs; they may be nil.
	restored func() error
	resumed  func()
	// asked counts requests for memory, early those before the tree ran; bytes what came.
	asked, early, bytes atomic.Int64
	chamber             *Chamber
}

func (m *lazyMove) run() error {
	m.t.Helper()
	m.say("before") // the tree is complete, and the connection accepted
	tree, err := Tree(m.pid)
	if err != nil {
		return err
	}
	s, err := readStatus(m.pid)
	if err != nil {
		return err
	}
	store, err := NewStore(1 << 30)
	if err != nil {
		return err
	}
	defer store.Close()
	pages, err := OpenPages(tree)
	if err != nil {
		return err
	}
	defer pages.Close()
	var running atomic.Bool
	fetch := func(f Fetch) error {
		n := m.asked.Add(1)
		if !running.Load() {
			m.early.Add(1)
		}
		if m.serve != nil {
			if err := m.serve(int(n)); err != nil {
				return err
			}
		}
		memory, err := pages.Read(f)
		if err != nil {
			return err
		}
		m.bytes.Add(int64(len(memory.Data)))
		return m.chamber.Give(memory)
	}
	in := func(host string, f func() error) error { return labtest.Host(m.t, m.lab, host).Do(f) }
	err = in("b", func() (err error) {
		m.chamber, err = NewChamber(RestoreConfig{Path: m.path, Root: s.inside(), IDs: tree, Fetch: fetch}, store)
		return err
	})
	if err != nil {
		return err
	}
	defer m.chamber.Close()
	var begin time.Time
	return in("a", func() error {
		return Dump(DumpConfig{
			Path: m.path, PID: m.pid, Inside: s.inside(), Processes: len(tree), Sink: store.Write, Lazy: true,
			BeforeFreeze: func() error { begin = time.Now(); return nil },
			Stopped: func(image Manifest) error {
				m.t.Logf("stopped and stored %d bytes after %v", image.Bytes, time.Since(begin))
				if err := store.Check(image); err != nil {
					return err
				}
				pid, err := m.chamber.Restore(func(int) error {
					m.t.Logf("restored after %v", time.Since(begin))
					if m.restored != nil {
						if err := m.restored(); err != nil {
							return err
						}
					}
					m.echo.path("b")
					running.Store(true)
					return nil
				}, func() {
					m.t.Logf("resumed after %v", time.Since(begin))
					if m.resumed != nil {
						m.resumed()
					}
				})
				if err != nil {
					return err
				}
				m.pid = pid
				m.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
				err = m.chamber.Wait()
				m.t.Logf("%d bytes of memory for %d requests after %v: %v", m.bytes.Load(), m.asked.Load(), time.Since(begin), err)
				return err
			},
		})
	})
}

// ask sends a line and returns the answer.
func (e *echo) ask(line string) (string, error) {
	_ = e.conn.SetDeadline(time.Now().Add(30 * time.Second)) // an emulated machine is slow
	if _, err := fmt.Fprintln(e.conn, line); err != nil {
		return "", err
	}
	return e.reader.ReadString('\n')
}

// requireLazy skips where the kernel or CRIU cannot.
func requireLazy(t *testing.T) string {
	t.Helper()
	path := requireCRIU(t)
	f, err := Probe(path)
	if err != nil {
		t.Fatal(err)
	}
	if !f.LazyPages {
		t.Skip("no userfaultfd for memory that follows a process")
	}
	return path
}

func TestMemoryFollows(t *testing.T) {
	m := &lazyMove{path: requireLazy(t), echo: newEchoOf(t, lazyServer, 20)}
	before, err := m.ask("sum")
	if err != nil {
		t.Fatal(err)
	}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	after, err := m.ask("sum")
	if err != nil || after != before {
		t.Errorf("the memory was %q, and is %q: %v", before, after, err)
	}
	if n := m.bytes.Load(); n < 40<<20 {
		t.Errorf("only %d bytes of memory followed", n)
	}
	m.say("at last")
	t.Logf("%d of %d requests came before the tree ran", m.early.Load(), m.asked.Load())
}

// TestMemoryDoesNotFollow lets memory fail to come, before the tree runs and when it does.
func TestMemoryDoesNotFollow(t *testing.T) {
	path := requireLazy(t)
	no := errors.New("no")
	t.Run("before", func(t *testing.T) {
		m := &lazyMove{path: path, echo: newEchoOf(t, lazyServer, 20)}
		m.serve = func(int) error { return no }
		if err := m.run(); !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
		m.say("it goes on at the source")
	})
	t.Run("given up", func(t *testing.T) {
		m := &lazyMove{path: path, echo: newEchoOf(t, lazyServer, 20)}
		m.restored = func() error { return no }
		if err := m.run(); !errors.Is(err, no) {
			t.Errorf("got %v", err)
		}
		m.say("it goes on at the source")
	})
	for name, fail := range map[string]func(m *lazyMove) error{
		"after":            func(*lazyMove) error { return no },
		"after, CRIU ends": func(m *lazyMove) error { return m.killFetcher() },
	} {
		t.Run(name, func(t *testing.T) {
			m := &lazyMove{path: path, echo: newEchoOf(t, lazyServer, 60)}
			var runs atomic.Bool
			m.resumed = func() { runs.Store(true) }
			m.serve = func(n int) error {
				if runs.Load() && n > 20 {
					return fail(m)
				}
				return nil
			}
			if err := m.run(); !errors.Is(err, ErrMemory) {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", m.pid)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("process %d runs without its memory: %v", m.pid, err)
			}
			if answer, err := m.ask("sum"); err == nil {
				t.Errorf("the client was told %q", answer)
			}
		})
	}
}

// killFetcher ends the CRIU that fetches memory, as a lack of memory would.
func (m *lazyMove) killFetcher() error {
	tree, err := Tree(m.chamber.cmd.Process.Pid)
	if err != nil {
		return err
	}
	for _, pid := range tree {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(line, []byte("lazy-pages")) {
			return unix.Kill(pid, unix.SIGKILL)
		}
	}
	return errors.New("no CRIU fetches memory")
}
