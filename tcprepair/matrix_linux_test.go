// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// content is what waits in the queues of a connection when it is moved.
type content string

const (
	empty    content = "empty"
	received content = "received" // data that the server has not read
	unacked  content = "unacked"  // data sent, whose acknowledgement is held
	unsent   content = "unsent"   // more than the congestion window, acknowledgements held: unacked and unsent
	corked   content = "corked"   // unsent, nothing unacked
	zeroSend content = "zero-window-send"
	zeroRecv content = "zero-window-receive"
	mixed    content = "received+unsent"
)

func contents() []content {
	return []content{empty, received, unacked, unsent, corked, zeroSend, zeroRecv, mixed}
}

// variant is a connection without one option.
type variant struct {
	name, sysctl string
}

func variants() []variant {
	return []variant{
		{name: "all-options"},
		{"no-sack", "ipv4/tcp_sack"},
		{"no-timestamps", "ipv4/tcp_timestamps"},
		{"no-window-scaling", "ipv4/tcp_window_scaling"},
	}
}

// impossible tells why a state cannot hold a content, "" if it can.
func impossible(s State, c content) string {
	switch {
	case s == FinWait2 && (c == unacked || c == unsent || c == corked || c == zeroSend || c == mixed):
		return "the peer has acknowledged our FIN, and everything before it"
	case s.PeerClosed() && c == zeroRecv:
		return "the peer's FIN waits behind the data that the window keeps back"
	}
	return ""
}

// stream counts what has been written, each way.
type stream struct {
	p        *pair
	up, down int
}

func (s *stream) clientWrites(tb testing.TB, n int) {
	writeAll(tb, s.p.client, ramp(s.up, n))
	s.up += n
}

func (s *stream) serverWrites(tb testing.TB, n int) {
	writeAll(tb, s.p.server, ramp(s.down, n))
	s.down += n
}

// fillUp writes until the socket takes no more.
func fillUp(fd, from int) int {
	n := 0
	for {
		m, err := socket(fd).send(ramp(from+n, 8<<10))
		if err != nil {
			return n
		}
		n += m
	}
}

// arrange brings the connection's queues to c and its server's end to state. In which order follows from what is to be unacknowledged.
func (w *wire) arrange(tb testing.TB, s *stream, state State, c content) {
	tb.Helper()
	p := s.p
	if c == received || c == mixed {
		s.clientWrites(tb, 5000)
		waitFor(tb, "data at the server", func() bool { in, _, _ := queues(tb, p.server); return in == 5000 })
	}
	if c == zeroRecv {
		// Until the server's window is closed and the client still has some to send.
		waitFor(tb, "a closed window", func() bool {
			s.up += fillUp(p.client, s.up)
			_, out, unsent := queues(tb, p.client)
			return unsent > 0 && out == unsent && infoOf(tb, p.client).retransmits == 0
		})
	}
	if c == zeroSend {
		waitFor(tb, "a closed window", func() bool {
			s.down += fillUp(p.server, s.down)
			_, out, unsent := queues(tb, p.server)
			return unsent > 0 && out == unsent
		})
	}
	if state.PeerClosed() && state != Closing {
		if err := socket(p.client).shutdownWrite(); err != nil {
			tb.Fatal(err)
		}
		waitState(tb, p.server, CloseWait)
	}
	// Acknowledgements are missing: held, or those of packets that are. In Closing the client must not see our FIN before it sends its own.
	missing := func() { w.hold(state != Closing, state == Closing) }
	switch c {
	case unacked:
		missing()
		s.serverWrites(tb, 5000)
	case unsent, mixed:
		missing()
		n := fillUp(p.server, s.down)
		s.down += n
		waitFor(tb, "unsent data", func() bool { _, out, unsent := queues(tb, p.server); return unsent > 0 && out > unsent })
	case corked:
		if err := socket(p.server).set(unix.IPPROTO_TCP, unix.TCP_CORK, 1); err != nil {
			tb.Fatal(err)
		}
		s.serverWrites(tb, 700)
	}
	switch state {
	case FinWait1, LastAck:
		missing()
		shutdownServer(tb, p, state)
	case FinWait2:
		shutdownServer(tb, p, state)
	case Closing:
		missing()
		if err := socket(p.server).shutdownWrite(); err != nil {
			tb.Fatal(err)
		}
		if err := socket(p.client).shutdownWrite(); err != nil {
			tb.Fatal(err)
		}
		waitState(tb, p.server, Closing)
	}
	waitState(tb, p.server, state)
}

func shutdownServer(tb testing.TB, p *pair, want State) {
	tb.Helper()
	if err := socket(p.server).shutdownWrite(); err != nil {
		tb.Fatal(err)
	}
	waitState(tb, p.server, want)
}

// finish ends the connection from wherever it is, and compares both streams.
func (w *wire) finish(tb testing.TB, s *stream, state State) {
	tb.Helper()
	w.hold(false, false)
	p := s.p
	wantUp, wantDown := s.up, s.down
	if !state.Closed() {
		wantDown += 3000
	}
	if !state.PeerClosed() {
		wantUp += 3000
	}
	var up, down []byte
	upDone, downDone := false, false
	b := make([]byte, 1<<16)
	waitFor(tb, "both streams", func() bool {
		if s.down < wantDown {
			if n, err := socket(p.server).send(ramp(s.down, wantDown-s.down)); err == nil {
				s.down += n
			}
			if s.down == wantDown {
				_ = socket(p.server).shutdownWrite()
			}
		}
		if s.up < wantUp {
			if n, err := socket(p.client).send(ramp(s.up, wantUp-s.up)); err == nil {
				s.up += n
			}
			if s.up == wantUp {
				_ = socket(p.client).shutdownWrite()
			}
		}
		if n, err := socket(p.server).receive(b, 0); err == nil {
			up, upDone = append(up, b[:n]...), n == 0
		} else if !errors.Is(err, unix.EAGAIN) {
			tb.Fatalf("server, after %d of %d bytes: %v", len(up), wantUp, err)
		}
		if n, err := socket(p.client).receive(b, 0); err == nil {
			down, downDone = append(down, b[:n]...), n == 0
		} else if !errors.Is(err, unix.EAGAIN) {
			tb.Fatalf("client, after %d of %d bytes: %v", len(down), wantDown, err)
		}
		return upDone && downDone
	})
	if !bytes.Equal(up, ramp(0, wantUp)) {
		tb.Errorf("client to server: %d bytes, want %d, or they differ", len(up), wantUp)
	}
	if !bytes.Equal(down, ramp(0, wantDown)) {
		tb.Errorf("server to client: %d bytes, want %d, or they differ", len(down), wantDown)
	}
	for _, h := range []*host{w.client, w.a, w.b} {
		if _, resets := w.count(h); resets != 0 {
			tb.Errorf("%s sent %d resets", h.name, resets)
		}
	}
}

// TestMatrix moves a connection in every state, with everything in its queues, of every family, with every option and with each left
// out, to another host and back, and then lets both ends finish.
func TestMatrix(t *testing.T) {
	w := newWire(t)
	for _, v := range variants() {
		if v.sysctl != "" {
			w.client.sysctl(t, v.sysctl, "0")
		}
		for _, f := range []family{v4, v6, mapped} {
			for _, state := range []State{Established, FinWait1, FinWait2, CloseWait, LastAck, Closing} {
				for _, c := range contents() {
					if impossible(state, c) != "" {
						continue
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%s", v.name, f, state, c), func(t *testing.T) {
						testMatrix(t, w, f, state, c)
					})
				}
			}
		}
		if v.sysctl != "" {
			w.client.sysctl(t, v.sysctl, "1")
		}
	}
	// 192 restores have a FIN injected, and each is within reach of a tick for some microseconds.
	if w.early > 10 {
		t.Errorf("restoring sent %d acknowledgements before the thaw", w.early)
	}
}

func testMatrix(t *testing.T, w *wire, f family, state State, c content) {
	w.forget()
	defer w.dump(t)
	p := w.connect(t, f, func(listener, client int) {
		smallWindows(t, c, listener, client)
	})
	s := &stream{p: p}
	w.arrange(t, s, state, c)
	before, mss := describe(t, p.server), infoOf(t, p.server).sendMSS
	for range 2 {
		snap := w.move(t, p, true)
		if snap.State != state {
			t.Fatalf("snapshot in %s, want %s", snap.State, state)
		}
		after := describe(t, p.server)
		if after.unsent > 0 { // how much may go out is up to the congestion control, which begins anew
			after.unsent = before.unsent
		}
		if after != before {
			t.Fatalf("moved:\n got %+v\nwant %+v", after, before)
		}
		// Room for timestamps, or the lack of it, is made good when a segment is built.
		if now := infoOf(t, p.server).sendMSS; now+12 < mss || now > mss+12 {
			t.Fatalf("send MSS is %d, was %d", now, mss)
		}
	}
	w.finish(t, s, state)
}

// smallWindows has both ends announce windows that close soon, if c is about that.
func smallWindows(tb testing.TB, c content, listener, client int) {
	tb.Helper()
	if c != zeroSend && c != zeroRecv {
		return
	}
	for _, fd := range []int{listener, client} {
		if err := socket(fd).set(unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10); err != nil {
			tb.Fatal(err)
		}
	}
}

// condition is what a move must not change.
type condition struct {
	state           State
	in, out, unsent int
	local, remote   string
	v6              bool
	options         uint8
	scales          uint8
}

func describe(tb testing.TB, fd int) condition {
	tb.Helper()
	info := infoOf(tb, fd)
	var c condition
	c.state, c.options, c.scales = info.state, info.options, info.scaleBits
	c.in, c.out, c.unsent = queues(tb, fd)
	flow, v6, err := flowOf(socket(fd))
	if err != nil {
		tb.Fatal(err)
	}
	c.local, c.remote, c.v6 = flow.Local.String(), flow.Remote.String(), v6
	return c
}
