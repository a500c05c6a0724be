// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == InitCommand {
		os.Exit(Init(os.Args[2:]))
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// requireCRIU returns a CRIU that works: this machine's, or the one that make deps has fetched. Without one the test is skipped.
func requireCRIU(t testing.TB) string {
	t.Helper()
	labtest.RequireRoot(t)
	fetched, err := filepath.Abs(filepath.Join("..", "..", ".cache", "criu", "criu"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{os.Getenv("REHOME_CRIU"), fetched, DefaultPath} {
		path, _, ferr := Find(p)
		if ferr == nil {
			return path
		}
		err = ferr
	}
	t.Skip("no CRIU that works:", err)
	return ""
}

// server is a program that answers each line with itself, and has so much memory besides.
const server = `
import socket, sys, os
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("%s", 7))
s.listen(5)
memory = bytearray(os.urandom(%d << 20))
c, a = s.accept()
while True:
    b = c.recv(1000)
    if not b:
        break
    c.sendall(b)
`

// echo is a server in a lab and a client with a connection to it.
type echo struct {
	t      *testing.T
	lab    *netnslab.Lab
	vip    string
	pid    int
	conn   net.Conn
	reader *bufio.Reader
}

func newEcho(t *testing.T, megabytes int) *echo {
	t.Helper()
	return newEchoOf(t, server, megabytes)
}

// newEchoOf starts another program.
func newEchoOf(t *testing.T, program string, megabytes int) *echo {
	t.Helper()
	e := &echo{t: t, lab: labtest.New(t, netnslab.Standard(2))}
	e.vip = e.lab.Topology().VIP4().String()
	e.path("a")
	cmd := labtest.Host(t, e.lab, "a").Command(t.Context(), "python3", "-c", fmt.Sprintf(program, e.vip, megabytes))
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e.pid = cmd.Process.Pid
	go func() { _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // an interpreter has to start
		conn, err := labtest.Host(t, e.lab, "client").Dial(t.Context(), "tcp4", e.vip+":7")
		if err == nil {
			e.conn, e.reader = conn, bufio.NewReader(conn)
			t.Cleanup(func() { _ = conn.Close() })
			return e
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// path sends the client's packets to a host.
func (e *echo) path(host string) {
	e.t.Helper()
	via := labtest.Host(e.t, e.lab, host).Addr4().String()
	out, err := labtest.Host(e.t, e.lab, "client").Command(e.t.Context(), "ip", "route", "replace", e.vip, "via", via).CombinedOutput()
	if err != nil {
		e.t.Fatalf("%v: %s", err, out)
	}
}

// say sends a line and wants it back.
func (e *echo) say(line string) {
	e.t.Helper()
	_ = e.conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintln(e.conn, line); err != nil {
		e.t.Fatal(err)
	}
	got, err := e.reader.ReadString('\n')
	if err != nil || got != line+"\n" {
		e.t.Fatalf("said %q, got %q and %v", line, got, err)
	}
}

// move moves the server to a host; fail, which may be nil, is asked when it is restored.
func (e *echo) move(path, to string, fail error) error {
	e.t.Helper()
	s, err := readStatus(e.pid)
	if err != nil {
		return err
	}
	store, err := NewStore(1 << 30)
	if err != nil {
		return err
	}
	defer store.Close()
	var chamber *Chamber
	in := func(host string, f func() error) error { return labtest.Host(e.t, e.lab, host).Do(f) }
	if err := in(to, func() (err error) {
		chamber, err = NewChamber(RestoreConfig{Path: path, Root: s.inside(), IDs: []int{s.inside()}}, store)
		return err
	}); err != nil {
		return err
	}
	defer chamber.Close()
	var begin time.Time
	from := "a"
	if to == "a" {
		from = "b"
	}
	pid := 0
	err = in(from, func() error {
		return Dump(DumpConfig{
			Path: path, PID: e.pid, Inside: s.inside(), Processes: 1, Sink: store.Write,
			BeforeFreeze: func() error { begin = time.Now(); return nil },
			Stopped: func(m Manifest) error {
				e.t.Logf("stopped and stored %d bytes after %v", m.Bytes, time.Since(begin))
				if err := store.Check(m); err != nil {
					return err
				}
				var err error
				pid, err = chamber.Restore(func(int) error {
					e.t.Logf("restored after %v", time.Since(begin))
					if fail == nil {
						e.path(to)
					}
					return fail
				}, func() { e.t.Logf("resumed after %v", time.Since(begin)) })
				return err
			},
		})
	})
	if err == nil {
		e.pid = pid
		e.t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL) })
	}
	return err
}

func TestThereAndBack(t *testing.T) {
	path := requireCRIU(t)
	e := newEcho(t, 50)
	e.say("before")
	for _, to := range []string{"b", "a", "b"} {
		if err := e.move(path, to, nil); err != nil {
			t.Fatal(err)
		}
		e.say("at " + to)
	}
}

func TestGivenUpWhenRestored(t *testing.T) {
	path := requireCRIU(t)
	e := newEcho(t, 1)
	e.say("before")
	no := errors.New("no")
	if err := e.move(path, "b", no); !errors.Is(err, no) {
		t.Fatalf("got %v", err)
	}
	e.say("after")
	if err := e.move(path, "b", nil); err != nil {
		t.Fatal(err)
	}
	e.say("at last")
}

func TestNoCRIU(t *testing.T) {
	if _, _, err := Find("/nonexistent/criu"); !errors.Is(err, ErrMissing) {
		t.Errorf("got %v", err)
	}
	truth, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program that is not CRIU:", err)
	}
	if _, _, err := Find(truth); !errors.Is(err, ErrGone) {
		t.Errorf("got %v", err)
	}
}
