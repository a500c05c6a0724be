// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
	"github.com/rehome-net/rehome/tcprepair"
)

// serveAt makes the test binary a server at the address that stands in this variable, for a test that kills it.
const serveAt = "REHOME_TEST_SERVE"

func TestMain(m *testing.M) {
	if at := os.Getenv(serveAt); at != "" {
		os.Exit(serve(at))
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// serve accepts one connection, says so, and keeps it until the process is killed.
func serve(at string) int {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	l, err := c.Listen(context.Background(), "tcp", at)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("listening")
	if _, err := l.Accept(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("accepted")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// field is a client, and servers a and b with the same virtual addresses.
type field struct {
	client, a, b *netnslab.Host
	vip4, vip6   netip.Addr
}

func newField(t testing.TB, impair netnslab.Impairment) *field {
	t.Helper()
	topo := netnslab.Standard(2)
	if impair != (netnslab.Impairment{}) {
		topo.Impairments = []netnslab.HostImpairment{{Host: "client", Up: impair, Down: impair}}
	}
	lab := labtest.New(t, topo)
	f := &field{
		client: labtest.Host(t, lab, "client"), a: labtest.Host(t, lab, "a"), b: labtest.Host(t, lab, "b"),
		vip4: topo.VIP4(), vip6: topo.VIP6(),
	}
	f.path(t, f.a)
	return f
}

// path leads the client's packets to the virtual addresses to a host.
func (f *field) path(t testing.TB, h *netnslab.Host) {
	t.Helper()
	l, err := h.Link()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{f.vip4, f.vip6} {
		if err := f.client.SetNeighbor(a, l.MAC); err != nil {
			t.Fatal(err)
		}
	}
}

// log is what a watcher sees.
type log struct {
	w    *Watcher
	ends chan End
}

// watch watches services on a host, until the test ends.
func watch(t testing.TB, h *netnslab.Host, services ...netip.AddrPort) *log {
	t.Helper()
	return watchEvery(t, 0, h, services...)
}

// watchEvery pauses after each Read, as an agent does.
func watchEvery(t testing.TB, pause time.Duration, h *netnslab.Host, services ...netip.AddrPort) *log {
	t.Helper()
	l := &log{ends: make(chan End, 1<<16)}
	err := h.Do(func() (err error) {
		l.w, err = Watch(WatchConfig{Services: services})
		return err
	})
	if errors.Is(err, ErrNoCgroup) || errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var ends []End
		for {
			var err error
			if ends, err = l.w.Read(ends[:0]); err != nil {
				done <- err
				return
			}
			for _, e := range ends {
				l.ends <- e
			}
			time.Sleep(pause)
		}
	}()
	t.Cleanup(func() {
		if err := l.w.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close: %v", err)
		}
	})
	return l
}

// next waits for an end.
func (l *log) next(t testing.TB) End {
	t.Helper()
	select {
	case e := <-l.ends:
		return e
	case <-time.After(patience):
		t.Fatalf("no end within %v", patience)
	}
	return End{}
}

// none checks that nothing more comes.
func (l *log) none(t testing.TB) {
	t.Helper()
	select {
	case e := <-l.ends:
		t.Errorf("unexpected end: %+v", e)
	case <-time.After(quiet):
	}
	if n := l.w.Lost(); n != 0 {
		t.Errorf("%d ends lost", n)
	}
}

func listen(t testing.TB, h *netnslab.Host, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	l, err := h.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// pair is a connection.
type pair struct {
	client, server *net.TCPConn
	flow           tcprepair.Flow
}

func connectTo(t testing.TB, f *field, l *net.TCPListener, at netip.AddrPort) pair {
	t.Helper()
	c, err := f.client.Dial(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.SetDeadline(time.Now().Add(patience))
	s, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	p := pair{client: c.(*net.TCPConn), server: s, flow: flowOf(c)}
	t.Cleanup(func() { _, _ = p.client.Close(), p.server.Close() })
	return p
}

func flowOf(client net.Conn) tcprepair.Flow {
	return tcprepair.NewFlow(client.RemoteAddr().(*net.TCPAddr).AddrPort(), client.LocalAddr().(*net.TCPAddr).AddrPort())
}

// drained waits for the other end's close.
func drained(t testing.TB, c *net.TCPConn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Error(err)
	}
}

// inState waits for a state.
func inState(t testing.TB, c *net.TCPConn, want tcprepair.State) {
	t.Helper()
	var state uint8
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		info, err := netnslab.ReadTCPInfo(c)
		if err != nil {
			t.Fatal(err)
		}
		if state = info.State; tcprepair.State(state) == want {
			return
		}
	}
	t.Fatalf("still in %v after %v", tcprepair.State(state), patience)
}

func control(t testing.TB, c syscall.Conn, f func(fd int) error) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = f(int(fd)) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
