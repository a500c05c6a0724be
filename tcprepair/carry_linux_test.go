// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// setting is one socket option a server may set.
type setting struct {
	level, name int
	value       uint32
}

// TestOptions sets everything that a server may set, to values that no default has, and wants it all on the other host, and back.
func TestOptions(t *testing.T) {
	w := newWire(t)
	common := []setting{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 16},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.IPPROTO_TCP, unix.TCP_CORK, 1},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20000},
		{unix.IPPROTO_TCP, unix.TCP_LINGER2, 17},
		{unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, 16384},
		{unix.SOL_SOCKET, unix.SO_MARK, 1<<31 + 5},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
		{unix.SOL_SOCKET, unix.SO_RCVLOWAT, 77},
		{unix.SOL_SOCKET, unix.SO_PEEK_OFF, 3},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, 50000},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, 60000},
	}
	ipv4 := []setting{{unix.IPPROTO_IP, unix.IP_TOS, 0x48}, {unix.IPPROTO_IP, unix.IP_TTL, 33}, {unix.SOL_SOCKET, unix.SO_PRIORITY, 2}}
	ipv6 := []setting{
		{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0x48},
		{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 33},
		{unix.SOL_SOCKET, unix.SO_PRIORITY, 2},
	}
	for f, own := range map[family][]setting{v4: ipv4, mapped: ipv4, v6: ipv6} {
		t.Run(string(f), func(t *testing.T) {
			w.forget()
			p := w.connect(t, f, nil)
			all := append(append([]setting(nil), common...), own...)
			all = slices.DeleteFunc(all, func(o setting) bool {
				err := socket(p.server).set(o.level, o.name, o.value)
				if o.name == unix.SO_PEEK_OFF && errors.Is(err, unix.EOPNOTSUPP) {
					return true // Linux 6.10, for IPv6 6.12
				}
				if err != nil {
					t.Fatalf("set %d/%d: %v", o.level, o.name, err)
				}
				return false
			})
			if err := errors.Join(
				socket(p.server).setPair(unix.SOL_SOCKET, unix.SO_LINGER, [2]uint32{1, 9}),
				socket(p.server).setUint64(unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 1<<33),
				socket(p.server).setName(unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"),
				socket(p.server).setName(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "tun0"),
			); err != nil {
				t.Fatal(err)
			}
			want := settingsOf(t, p.server, f)
			outline := want.Options
			for range 2 {
				w.move(t, p, false)
				got := settingsOf(t, p.server, f)
				if d := cmp.Diff(outline, got.Options); d != "" {
					t.Errorf("options (-want +got):\n%s", d)
				}
				for _, o := range all {
					v, err := socket(p.server).get(o.level, o.name)
					if o.level == unix.SOL_SOCKET && (o.name == unix.SO_RCVBUF || o.name == unix.SO_SNDBUF) {
						o.value *= 2
					}
					if err != nil || v != o.value {
						t.Errorf("option %d/%d is %d, want %d: %v", o.level, o.name, v, o.value, err)
					}
				}
				if v, err := socket(p.server).get(unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil || v != sendLocked|receiveLocked {
					t.Errorf("buffer locks %d: %v", v, err)
				}
				if v, err := socket(p.server).get(unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v != 1 {
					t.Errorf("SO_REUSEADDR %d: %v", v, err)
				}
				if pair, err := socket(p.server).getPair(unix.SOL_SOCKET, unix.SO_LINGER); err != nil || pair != [2]uint32{1, 9} {
					t.Errorf("SO_LINGER %v: %v", pair, err)
				}
				if info := infoOf(t, p.server); info.maxPacingRate != 1<<33 {
					t.Errorf("pacing rate %d", info.maxPacingRate)
				}
			}
		})
	}
}

func settingsOf(tb testing.TB, fd int, f family) *Outline {
	tb.Helper()
	o, err := ReadOutline(fd)
	if err != nil {
		tb.Fatal(err)
	}
	if o.Mapped != (f == mapped) {
		tb.Errorf("mapped is %t", o.Mapped)
	}
	return o
}

// TestDefaults wants nothing carried of a socket on which nothing was set, and no buffer locked by the move.
func TestDefaults(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	s := w.move(t, p, false)
	want := Options{NonBlocking: true, Congestion: s.Options.Congestion}
	if d := cmp.Diff(want, s.Options); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if v, err := socket(p.server).get(unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil || v != 0 {
		t.Errorf("buffer locks %d: %v", v, err)
	}
}

// TestLargeQueues moves megabytes in both queues, past every default and past net.core.rmem_max, and autotuning goes on afterwards.
func TestLargeQueues(t *testing.T) {
	const up, down = 6 << 20, 8 << 20
	w := newWire(t)
	p := w.connect(t, v4, func(listener, client int) {
		for _, fd := range []int{listener, client} {
			if err := socket(fd).set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
				t.Fatal(err)
			}
		}
	})
	if err := socket(p.server).set(unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20); err != nil {
		t.Fatal(err)
	}
	// Autotuning again, so that the target has to find its own sizes.
	if err := socket(p.server).set(unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0); err != nil {
		t.Fatal(err)
	}
	writeAll(t, p.client, ramp(0, up))
	waitFor(t, "the upload", func() bool { in, _, _ := queues(t, p.server); return in == up })
	w.hold(true, true)
	writeAll(t, p.server, ramp(0, down))
	threshold := infoOf(t, p.server).receiveThreshold
	for range 2 {
		s := w.move(t, p, true)
		if len(s.Received) != up || len(s.Unacked)+len(s.Unsent) != down || len(s.Unsent) == 0 || len(s.Unacked) == 0 {
			t.Fatalf("%d received, %d unacked, %d unsent", len(s.Received), len(s.Unacked), len(s.Unsent))
		}
		// The window does not begin anew either.
		if now := infoOf(t, p.server).receiveThreshold; now < min(threshold, s.Window.Receive)/2 {
			t.Errorf("the receive window is kept below %d bytes, was %d, announced %d", now, threshold, s.Window.Receive)
		}
	}
	if v, err := socket(p.server).get(unix.SOL_SOCKET, unix.SO_BUF_LOCK); err != nil || v != 0 {
		t.Errorf("buffer locks %d: %v", v, err)
	}
	w.hold(false, false)
	if got := readExactly(t, p.server, up); !bytes.Equal(got, ramp(0, up)) {
		t.Error("the upload differs")
	}
	if got := readExactly(t, p.client, down); !bytes.Equal(got, ramp(0, down)) {
		t.Error("the download differs")
	}
}

func TestLimits(t *testing.T) {
	w := newWire(t)
	for name, fill := range map[string]func(p *pair){
		"received": func(p *pair) { writeAll(t, p.client, ramp(0, 1001)) },
		"to send":  func(p *pair) { w.hold(true, true); writeAll(t, p.server, ramp(0, 1001)) },
	} {
		t.Run(name, func(t *testing.T) {
			w.forget()
			p := w.connect(t, v4, nil)
			fill(p)
			waitFor(t, "data", func() bool { in, out, _ := queues(t, p.server); return in+out == 1001 })
			w.settle(t, w.client)
			w.settle(t, w.a)
			var err error
			w.a.do(func() { err = Freeze(p.server) })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Take(p.server, Limits{QueueBytes: 1000}); !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v", err)
			}
			if _, err := Take(p.server, Limits{QueueBytes: 1001}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUrgent refuses connections with urgent data that the kernel does not show whole, and takes them as soon as it is read.
func TestUrgent(t *testing.T) {
	w := newWire(t)
	for name, prepare := range map[string]func(p *pair){
		"unread": func(*pair) {},
		"first": func(p *pair) { // the mark is next to be read
			readExactly(t, p.server, 10)
		},
		"read early": func(p *pair) { // the byte is read, but not what lies before and behind it
			if n, err := unix.Read(p.server, make([]byte, 5)); n != 5 || err != nil {
				t.Fatal(n, err)
			}
			if _, _, err := unix.Recvfrom(p.server, make([]byte, 1), unix.MSG_OOB); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w.forget()
			p := w.connect(t, v4, nil)
			writeAll(t, p.client, ramp(0, 10))
			if err := unix.Sendto(p.client, []byte{99}, unix.MSG_OOB, nil); err != nil {
				t.Fatal(err)
			}
			writeAll(t, p.client, ramp(10, 10))
			waitFor(t, "segments", func() bool { return infoOf(t, p.server).bytesReceived == 21 })
			prepare(p)
			var err error
			w.a.do(func() { err = Freeze(p.server) })
			if err != nil {
				t.Fatal(err)
			}
			o, err := ReadOutline(p.server)
			if err != nil {
				t.Fatal(err)
			}
			for _, ahead := range []int{0, 5} {
				if s, err := o.TakeRest(p.server, Limits{}, ahead); !errors.Is(err, ErrUrgent) {
					t.Fatalf("got %+v, %v with %d bytes sent ahead", s, err, ahead)
				}
			}
			if err := Resume(p.server); err != nil {
				t.Fatal(err)
			}
			_, _, _ = unix.Recvfrom(p.server, make([]byte, 1), unix.MSG_OOB) // EINVAL where it has been read
			var rest []byte
			waitFor(t, "the rest", func() bool {
				b := make([]byte, 32)
				if n, err := socket(p.server).receive(b, 0); err == nil {
					rest = append(rest, b[:n]...)
				}
				return len(rest) > 0 && rest[len(rest)-1] == 19
			})
			if want := ramp(20-len(rest), len(rest)); !bytes.Equal(rest, want) {
				t.Errorf("got %v", rest)
			}
			w.move(t, p, false)
		})
	}
}

// TestPartlyAcknowledged moves a segment of which the client has acknowledged only the beginning: the kernel still holds it whole.
func TestPartlyAcknowledged(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	w.hold(true, true)
	writeAll(t, p.server, ramp(0, 1000))
	w.settle(t, w.a)
	s := snapshotOf(t, p)
	if err := Resume(p.server); err != nil {
		t.Fatal(err)
	}
	g := segment{
		from: s.Flow.Remote, to: s.Flow.Local, seq: s.ReceiveSeq, ack: s.SendSeq + 400, flags: tcpACK,
		window: uint16(s.Window.Send >> s.Negotiated.SendScale),
	}
	w.mu.Lock()
	_, err := w.a.tun.Write(g.packet())
	w.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the acknowledgement", func() bool { _, out, _ := queues(t, p.server); return out == 600 })
	s = w.move(t, p, true)
	if s.SendSeq != g.ack || !bytes.Equal(s.Unacked, ramp(400, 600)) {
		t.Errorf("%d bytes from %d on, want 600 from %d on, or they differ", len(s.Unacked), s.SendSeq, g.ack)
	}
	w.hold(false, false)
	if got := readExactly(t, p.client, 1000); !bytes.Equal(got, ramp(0, 1000)) {
		t.Error("the stream differs")
	}
}

// TestPeekOffset peeks on where the application had peeked to.
func TestPeekOffset(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	writeAll(t, p.client, ramp(0, 100))
	waitFor(t, "data", func() bool { in, _, _ := queues(t, p.server); return in == 100 })
	if err := socket(p.server).set(unix.SOL_SOCKET, unix.SO_PEEK_OFF, 30); err != nil {
		t.Skipf("this kernel has no SO_PEEK_OFF for TCP (Linux 6.10): %v", err)
	}
	s := w.move(t, p, false)
	if !bytes.Equal(s.Received, ramp(0, 100)) {
		t.Errorf("%d bytes", len(s.Received))
	}
	b := make([]byte, 10)
	if n, err := socket(p.server).receive(b, unix.MSG_PEEK); err != nil || !bytes.Equal(b[:n], ramp(30, 10)) {
		t.Errorf("peeked %v, %v", b[:n], err)
	}
}

// TestAdvice wants what the kernel knew of the path.
func TestAdvice(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	talk(t, p)
	var info tcpInfo
	// The last acknowledgement changes all of them.
	waitFor(t, "acknowledgements", func() bool { info = infoOf(t, p.server); return info.unacked == 0 })
	s := w.move(t, p, false)
	if s.Advice.CongestionWindow != info.congestionWindow || s.Advice.RTT.Microseconds() != int64(info.rtt) || s.Advice.RTT == 0 {
		t.Errorf("%+v of %+v", s.Advice, info)
	}
}
