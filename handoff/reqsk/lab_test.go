// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// patience bounds every wait of the tests.
const patience = 10 * time.Second

// rig is a client, a host that accepts (entry), and one whose servers know nothing of it.
type rig struct {
	client, entry, server *netnslab.Host
	vip4, vip6            netip.Addr
	entryMAC, serverMAC   net.HardwareAddr
}

func newRig(t testing.TB, serverSysctls ...string) *rig {
	t.Helper()
	topo := netnslab.Standard(1)
	lab := labtest.New(t, topo)
	r := &rig{
		client: labtest.Host(t, lab, "client"), entry: labtest.Host(t, lab, "entry"), server: labtest.Host(t, lab, "a"),
		vip4: topo.VIP4(), vip6: topo.VIP6(),
	}
	for _, h := range []*netnslab.Host{r.entry, r.server} {
		l, err := h.Link()
		if err != nil {
			t.Fatal(err)
		}
		if h == r.entry {
			r.entryMAC = l.MAC
		} else {
			r.serverMAC = l.MAC
		}
	}
	for i := 0; i+1 < len(serverSysctls); i += 2 {
		r.sysctl(t, r.server, serverSysctls[i], serverSysctls[i+1])
	}
	return r
}

func (r *rig) sysctl(t testing.TB, h *netnslab.Host, key, value string) {
	t.Helper()
	if err := h.SetSysctl(key, value); err != nil {
		t.Fatal(err)
	}
}

// path points the client's packets to the virtual addresses at one of the two.
func (r *rig) path(t testing.TB, mac net.HardwareAddr) {
	t.Helper()
	for _, a := range []netip.Addr{r.vip4, r.vip6} {
		if err := r.client.SetNeighbor(a, mac); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) open(t testing.TB, c Config) *Injector {
	t.Helper()
	in, err := r.tryOpen(c)
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	})
	return in
}

func (r *rig) tryOpen(c Config) (in *Injector, err error) {
	err = r.server.Do(func() (err error) {
		in, err = Open(c)
		return err
	})
	return in, err
}

// listen makes a listening socket on the server's host, with options set before listen().
func (r *rig) listen(t testing.TB, address string, set ...option) *net.TCPListener {
	t.Helper()
	return listenAt(t, r.server, address, false, set...)
}

// option is a socket option.
type option struct{ level, name, value int }

func listenAt(t testing.TB, h *netnslab.Host, address string, mptcp bool, set ...option) *net.TCPListener {
	t.Helper()
	c := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			for _, o := range set {
				failed = errors.Join(failed, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
			}
		})
		return errors.Join(err, failed)
	}}
	c.SetMultipathTCP(mptcp)
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = c.Listen(context.Background(), "tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.TCPListener)
}

// entryListener listens where the client's connections arrive first, with room for large requests.
func (r *rig) entryListener(t testing.TB, at netip.AddrPort) *net.TCPListener {
	t.Helper()
	return listenAt(t, r.entry, at.String(), false, option{unix.SOL_SOCKET, unix.SO_RCVBUF, 1 << 20})
}

// peeked is a connection that the entry has accepted, whose request it has seen and not read.
type peeked struct {
	client *net.TCPConn
	entry  *net.TCPConn
}

// peek connects and sends a request to the entry; with fin it is the last.
func (r *rig) peek(t testing.TB, l *net.TCPListener, request []byte, fin bool, set ...option) peeked {
	t.Helper()
	var p peeked
	err := r.client.Do(func() error {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var failed error
			err := raw.Control(func(fd uintptr) {
				for _, o := range set {
					failed = errors.Join(failed, unix.SetsockoptInt(int(fd), o.level, o.name, o.value))
				}
			})
			return errors.Join(err, failed)
		}}
		d.SetMultipathTCP(false)
		c, err := d.Dial("tcp", l.Addr().String())
		if err == nil {
			p.client = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.client.Close() })
	if p.entry, err = l.AcceptTCP(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.entry.Close() })
	if _, err := p.client.Write(request); err != nil {
		t.Fatal(err)
	}
	if fin {
		if err := p.client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	want := uint8(tcprepair.Established)
	if fin {
		want = uint8(tcprepair.CloseWait)
	}
	eventually(t, "the entry has the request", func() bool {
		info, err := netnslab.ReadTCPInfo(p.entry)
		if err != nil {
			t.Fatal(err)
		}
		got, missing := queued(t, p.entry), queuedOut(t, p.client)
		return info.State == want && got == len(request) && missing == 0
	})
	return p
}

// take takes the connection away from the entry, when the path does not lead there any more.
func (r *rig) take(t testing.TB, p peeked) *tcprepair.Snapshot {
	t.Helper()
	var s *tcprepair.Snapshot
	control(t, p.entry, func(fd int) error {
		return r.entry.Do(func() (err error) {
			if err := tcprepair.Freeze(fd); err != nil {
				return err
			}
			if s, err = tcprepair.Take(fd, tcprepair.Limits{}); err != nil {
				return err
			}
			return tcprepair.Discard(fd)
		})
	})
	_ = p.entry.Close()
	return s
}

// snapshot is peek and take in one, with the path left at the server.
func (r *rig) snapshot(t testing.TB, l *net.TCPListener, request []byte, fin bool, set ...option) (*net.TCPConn, *tcprepair.Snapshot) {
	t.Helper()
	r.path(t, r.entryMAC)
	p := r.peek(t, l, request, fin, set...)
	r.path(t, r.serverMAC)
	return p.client, r.take(t, p)
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

func ioctl(t testing.TB, c syscall.Conn, request uint) (n int) {
	t.Helper()
	control(t, c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, request)
		return err
	})
	return n
}

func queued(t testing.TB, c syscall.Conn) int    { return ioctl(t, c, unix.SIOCINQ) }
func queuedOut(t testing.TB, c syscall.Conn) int { return ioctl(t, c, unix.SIOCOUTQ) }

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func accept(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// ramp is a stretch of a stream with a prime period: lost, doubled and shifted bytes all show.
func ramp(t testing.TB, from, n int) []byte {
	t.Helper()
	b, err := io.ReadAll(netnslab.NewRamp(int64(from), int64(n)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// expect reads n bytes of the ramp.
func expect(t testing.TB, what string, c net.Conn, from, n int) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n)
	if m, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("%s: %d of %d bytes: %v", what, m, n, err)
	}
	if want := ramp(t, from, n); !bytes.Equal(got, want) {
		at := 0
		for got[at] == want[at] {
			at++
		}
		t.Fatalf("%s: byte %d is %d, want %d", what, at, got[at], want[at])
	}
}

// send writes n bytes of the ramp.
func send(t testing.TB, what string, c net.Conn, from, n int) {
	t.Helper()
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(ramp(t, from, n)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// undisturbed checks that the client never had to send anything again.
func undisturbed(t testing.TB, c *net.TCPConn) {
	t.Helper()
	info, err := netnslab.ReadTCPInfo(c)
	if err != nil {
		t.Fatal(err)
	}
	if info.Retransmitted != 0 || info.Timeouts != 0 || info.Duplicates != 0 {
		t.Errorf("client: %d segments sent again, %d timeouts, %d duplicates", info.Retransmitted, info.Timeouts, info.Duplicates)
	}
}

// sockets counts what the server's host has for a flow.
func (r *rig) sockets(t testing.TB, in *Injector, s *tcprepair.Snapshot) int {
	t.Helper()
	st, err := newStream(s)
	if err != nil {
		t.Fatal(err)
	}
	l := <-in.lanes
	defer func() { in.lanes <- l }()
	l.set(st)
	a, err := l.check(st)
	if err != nil {
		t.Fatal(err)
	}
	if a.result == reqskResultRESULT_FOUND {
		return 1
	}
	return 0
}

func at(a netip.Addr, port int) netip.AddrPort { return netip.AddrPortFrom(a, uint16(port)) }

func itoa(n int) string { return strconv.Itoa(n) }
