// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/reqsk"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// take freezes a connection, reads it and ends it silently.
func take(t testing.TB, h *netnslab.Host, c *net.TCPConn) *tcprepair.Snapshot {
	t.Helper()
	var s *tcprepair.Snapshot
	control(t, c, func(fd int) error {
		return h.Do(func() (err error) {
			if err := tcprepair.Freeze(fd); err != nil {
				return err
			}
			if s, err = tcprepair.Take(fd, tcprepair.Limits{}); err != nil {
				return err
			}
			return tcprepair.Discard(fd)
		})
	})
	_ = c.Close()
	return s
}

func restore(t testing.TB, h *netnslab.Host, s *tcprepair.Snapshot) *tcprepair.Restored {
	t.Helper()
	var r *tcprepair.Restored
	if err := h.Do(func() (err error) {
		r, err = tcprepair.Restore(s, tcprepair.RestoreConfig{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return r
}

// thawed is a restored connection as a net.Conn.
func thawed(t testing.TB, r *tcprepair.Restored) *net.TCPConn {
	t.Helper()
	if err := r.Thaw(); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(r.Disown()), "restored")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// TestMoved moves a connection away, back, and away again: only what happens to it in the end is an end, and where it happens.
func TestMoved(t *testing.T) {
	for _, family := range []string{"IPv4", "IPv6"} {
		t.Run(family, func(t *testing.T) {
			f := newField(t, netnslab.Impairment{})
			at := netip.AddrPortFrom(f.vip4, 80)
			if family == "IPv6" {
				at = netip.AddrPortFrom(f.vip6, 80)
			}
			onA, onB := watch(t, f.a, at), watch(t, f.b, at)
			p := connectTo(t, f, listen(t, f.a, at), at)
			c, from := p.server, f.a
			for _, to := range []*netnslab.Host{f.b, f.a, f.b} {
				s := take(t, from, c)
				f.path(t, to)
				c, from = thawed(t, restore(t, to, s)), to
			}
			onA.none(t)
			onB.none(t)
			if _, err := p.client.Write([]byte("still there")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 11)
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if n, err := c.Read(b); err != nil || string(b[:n]) != "still there" {
				t.Fatalf("%q, %v", b, err)
			}
			_ = p.client.Close()
			drained(t, c)
			_ = c.Close()
			if e := onB.next(t); e.Flow != p.flow || e.From != tcprepair.LastAck {
				t.Errorf("%+v", e)
			}
			onB.none(t)
			onA.none(t)
		})
	}
}

// TestFrozen ends frozen sockets in the ways that agents do.
func TestFrozen(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	at := netip.AddrPortFrom(f.vip4, 80)
	l := listen(t, f.a, at)
	for _, c := range []struct {
		name  string
		end   func(*tcprepair.Restored) error
		ended bool
	}{
		{"discarded", (*tcprepair.Restored).Discard, false},
		{"closed frozen", (*tcprepair.Restored).Close, false},
		{"reset", (*tcprepair.Restored).Reset, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := watch(t, f.a, at)
			p := connectTo(t, f, l, at)
			r := restore(t, f.a, take(t, f.a, p.server))
			if err := c.end(r); err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			if c.ended {
				if e := log.next(t); e.Flow != p.flow {
					t.Errorf("%+v", e)
				}
			}
			log.none(t)
		})
	}
}

// TestHalfClosed restores connections that are half over: what is done to the socket on the way is no end.
func TestHalfClosed(t *testing.T) {
	for _, c := range []struct {
		name  string
		state tcprepair.State
		half  func(pair) error
		end   func(t *testing.T, p pair, c *net.TCPConn)
		from  tcprepair.State
	}{
		{
			"the client has closed", tcprepair.CloseWait,
			func(p pair) error { return p.client.CloseWrite() },
			func(_ *testing.T, _ pair, c *net.TCPConn) { _ = c.Close() },
			tcprepair.LastAck,
		},
		{
			"the server has closed", tcprepair.FinWait2,
			func(p pair) error { return p.server.CloseWrite() },
			func(_ *testing.T, p pair, _ *net.TCPConn) { _ = p.client.Close() },
			tcprepair.FinWait2,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newField(t, netnslab.Impairment{})
			at := netip.AddrPortFrom(f.vip4, 80)
			onA, onB := watch(t, f.a, at), watch(t, f.b, at)
			p := connectTo(t, f, listen(t, f.a, at), at)
			if err := c.half(p); err != nil {
				t.Fatal(err)
			}
			inState(t, p.server, c.state)
			s := take(t, f.a, p.server)
			f.path(t, f.b)
			moved := thawed(t, restore(t, f.b, s))
			onA.none(t)
			onB.none(t)
			c.end(t, p, moved)
			if e := onB.next(t); e.Flow != p.flow || e.From != c.from {
				t.Errorf("%+v", e)
			}
			onB.none(t)
			onA.none(t)
		})
	}
}

// TestUnmodified ends a connection that handoff/reqsk has put into an ordinary listener's queue.
func TestUnmodified(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	for _, at := range []netip.AddrPort{netip.AddrPortFrom(f.vip4, 80), netip.AddrPortFrom(f.vip6, 80)} {
		t.Run(at.String(), func(t *testing.T) {
			f.path(t, f.a)
			var in *reqsk.Injector
			err := f.b.Do(func() (err error) {
				in, err = reqsk.Open(reqsk.Config{})
				return err
			})
			if errors.Is(err, reqsk.ErrUnsupported) {
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
			onB := watch(t, f.b, at)
			first, second := listen(t, f.a, at), listen(t, f.b, at)
			p := connectTo(t, f, first, at)
			if _, err := p.client.Write([]byte("GET")); err != nil {
				t.Fatal(err)
			}
			control(t, p.server, func(fd int) error {
				poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				_, err := unix.Poll(poll, int(patience.Milliseconds()))
				return err
			})
			s := take(t, f.a, p.server)
			f.path(t, f.b)
			if err := in.Inject(s); err != nil {
				t.Fatal(err)
			}
			_ = second.SetDeadline(time.Now().Add(patience))
			c, err := second.AcceptTCP()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			onB.none(t)
			_ = p.client.Close()
			drained(t, c)
			_ = c.Close()
			if e := onB.next(t); e.Flow != p.flow || e.From != tcprepair.LastAck {
				t.Errorf("%+v", e)
			}
			onB.none(t)
		})
	}
}
