// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// patience bounds every wait of these tests for something that must happen.
const patience = 10 * time.Second

// fakeAgent is an agent as an application sees it. It moves no socket: the descriptor that one listener exports is what another
// imports.
type fakeAgent struct {
	t    testing.TB
	path string
	ln   *net.UnixListener
	apps chan *fakeApp

	mu   sync.Mutex
	all  []*fakeApp
	dead bool
}

// fakeApp is one application's link, as the agent holds it.
type fakeApp struct {
	t        testing.TB
	link     *wire.Link
	register *wire.Register
	frames   chan received
	done     chan struct{}
}

type received struct {
	wire.Frame
	fd int
}

// socketPath returns a path for an agent's socket.
func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "agent.sock") }

func startAgent(t testing.TB, path string) *fakeAgent {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{t: t, path: path, ln: ln, apps: make(chan *fakeApp, 64)}
	go a.accept()
	t.Cleanup(a.kill)
	return a
}

func (a *fakeAgent) accept() {
	for {
		conn, err := a.ln.AcceptUnix()
		if err != nil {
			return
		}
		app := &fakeApp{t: a.t, link: wire.NewLink(conn), frames: make(chan received, 64), done: make(chan struct{})}
		a.mu.Lock()
		dead := a.dead
		a.all = append(a.all, app)
		a.mu.Unlock()
		go app.receive(a.apps)
		if dead {
			app.close()
		}
	}
}

// kill ends the agent as its death would: its socket and every descriptor it holds are gone.
func (a *fakeAgent) kill() {
	a.mu.Lock()
	a.dead = true
	all := a.all
	a.all = nil
	a.mu.Unlock()
	_ = a.ln.Close()
	for _, app := range all {
		app.close()
	}
}

// app returns the next application that has registered.
func (a *fakeAgent) app() *fakeApp {
	a.t.Helper()
	select {
	case app := <-a.apps:
		return app
	case <-time.After(patience):
		a.t.Fatal("no application registered")
		return nil
	}
}

func (f *fakeApp) receive(apps chan<- *fakeApp) {
	defer close(f.done)
	defer close(f.frames)
	for {
		frame, fd, err := f.link.Receive()
		if err != nil {
			return
		}
		switch m := frame.Message.(type) {
		case *wire.Hello:
			_ = f.link.Send(0, wire.NewHello("test", ""))
		case *wire.Register:
			f.register = m
			_ = f.link.Send(frame.ID, &wire.Registered{})
			apps <- f
		default:
			f.frames <- received{frame, fd}
		}
	}
}

func (f *fakeApp) close() {
	_ = f.link.Close()
	for r := range f.frames {
		closeFD(r.fd)
	}
	<-f.done
}

func (f *fakeApp) send(id uint64, m wire.Message) {
	f.t.Helper()
	if err := f.link.Send(id, m); err != nil {
		f.t.Fatalf("send %v: %v", m.Kind(), err)
	}
}

// next returns the application's next frame.
func (f *fakeApp) next() received {
	f.t.Helper()
	select {
	case r, ok := <-f.frames:
		if !ok {
			f.t.Fatal("the application closed the link")
		}
		return r
	case <-time.After(patience):
		f.t.Fatal("no frame from the application")
		return received{}
	}
}

// expect returns the application's next frame, which must be an M with this id.
func expect[M wire.Message](f *fakeApp, id uint64) (M, int) {
	f.t.Helper()
	r := f.next()
	m, ok := r.Message.(M)
	if !ok || r.ID != id {
		f.t.Fatalf("got %v %+v of id %d, want %T of id %d", r.Message.Kind(), r.Message, r.ID, m, id)
	}
	return m, r.fd
}

// exportedConn is what an application exported.
type exportedConn struct {
	flow  tcprepair.Flow
	state []byte
	epoch uint32
	late  bool // to be said in Import
	fd    int
}

// awaitExported returns the answer to an Export.
func (f *fakeApp) awaitExported(id uint64, flow tcprepair.Flow) exportedConn {
	f.t.Helper()
	var parts wire.Assembly
	for {
		r := f.next()
		switch m := r.Message.(type) {
		case *wire.Chunk:
			if err := parts.Add(m, MaxState); err != nil {
				f.t.Fatal(err)
			}
		case *wire.Exported:
			if r.ID != id {
				f.t.Fatalf("Exported of id %d, want %d", r.ID, id)
			}
			return exportedConn{flow: flow, state: parts.State(m.State), epoch: m.Epoch, fd: r.fd}
		default:
			f.t.Fatalf("got %v %+v, want Exported", m.Kind(), m)
		}
	}
}

func (f *fakeApp) export(id uint64, flow tcprepair.Flow) exportedConn {
	f.t.Helper()
	f.send(id, &wire.Export{Flow: flow, Target: "b", Limit: patience})
	return f.awaitExported(id, flow)
}

// sendImport hands e to the application.
func (f *fakeApp) sendImport(id uint64, e exportedConn, ahead []byte) {
	f.t.Helper()
	var chunks []*wire.Chunk
	m := &wire.Import{Flow: e.flow, Epoch: e.epoch + 1, Service: f.register.Service, Late: e.late}
	chunks, m.State = wire.Split(wire.BlobState, e.state)
	more, tail := wire.Split(wire.BlobAhead, ahead)
	m.Ahead = tail
	for _, c := range append(chunks, more...) {
		f.send(id, c)
	}
	if err := f.link.SendFD(id, m, e.fd); err != nil {
		f.t.Fatal(err)
	}
}

// migrate moves the connection of flow from one application to another, which serves it when migrate returns.
func migrate(from, to *fakeApp, id uint64, flow tcprepair.Flow) {
	from.t.Helper()
	e := from.export(id, flow)
	to.sendImport(id, e, nil)
	expect[*wire.Imported](to, id)
	from.send(id, &wire.Migrated{})
	to.send(id, &wire.Activate{})
}

// listen starts a listener on loopback whose agent is at path.
func listen(t testing.TB, path string, cfg Config) *Listener {
	t.Helper()
	cfg.Agent = path
	if cfg.Service == "" {
		cfg.Service = "test"
	}
	ln, err := Listen(t.Context(), "tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return ln
}

// connect returns both ends of a connection accepted by ln.
func connect(t testing.TB, ln *Listener) (client *net.TCPConn, server *Conn) {
	t.Helper()
	d := net.Dialer{}
	d.SetMultipathTCP(false)
	nc, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client, ok := nc.(*net.TCPConn)
	if !ok {
		t.Fatalf("dialled a %T", nc)
	}
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(2 * patience))
	return client, acceptConn(t, ln)
}

func acceptConn(t testing.TB, ln *Listener) *Conn {
	t.Helper()
	type result struct {
		c   *Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := ln.AcceptConn()
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			t.Fatal(r.err)
		}
		t.Cleanup(func() { _ = r.c.Close() })
		return r.c
	case <-time.After(patience):
		t.Fatal("nothing to accept")
		return nil
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// openFDs returns how many descriptors this process has.
func openFDs(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// inode tells whether two descriptors are of one socket.
func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// unread returns how many bytes wait in the socket's receive queue.
func unread(t testing.TB, fd int) int {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func sameAddr(a, b netip.AddrPort) bool { return a == b }
