// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// listenLoopback serves connections on loopback until the test ends, and returns how to connect.
func listenLoopback(t *testing.T, serve func(conn net.Conn)) func(context.Context) (*net.TCPConn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	t.Cleanup(func() {
		_ = ln.Close()
		_ = group.Wait()
	})
	group.Go(func() error {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return nil
			}
			group.Go(func() error {
				defer conn.Close()
				serve(conn)
				return nil
			})
		}
	})
	return func(ctx context.Context) (*net.TCPConn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		if err != nil {
			return nil, err
		}
		return conn.(*net.TCPConn), nil
	}
}

func lines(int) dialogue { return &lineDialogue{} }

func TestAskers(t *testing.T) {
	var slow atomic.Bool
	dial := listenLoopback(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if slow.Load() {
				time.Sleep(50 * time.Millisecond)
			}
			if _, err := io.WriteString(conn, line); err != nil {
				return
			}
		}
	})
	g, err := startAskers(t.Context(), 3, time.Millisecond, dial, lines)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	slow.Store(true)
	if err := g.await(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, millis := range g.longest() {
		if millis < 50 {
			t.Errorf("client %d felt %v ms", i, millis)
		}
	}
	g.close()
	if c := g.counts(); c.answers < 6 || c.errors != 0 || c.reconnects != 0 || c.segments != 0 {
		t.Errorf("%+v", c)
	}
}

// TestAskersNoticeTheEnd counts a connection that the server ends, and the new one.
func TestAskersNoticeTheEnd(t *testing.T) {
	var served atomic.Int64
	dial := listenLoopback(t, func(conn net.Conn) {
		first := served.Add(1) == 1
		for n := 0; !first || n < 5; n++ {
			buf := make([]byte, len("line 000000000\n"))
			if _, err := io.ReadFull(conn, buf); err != nil {
				return
			}
			if _, err := conn.Write(buf); err != nil {
				return
			}
		}
	})
	g, err := startAskers(t.Context(), 1, time.Millisecond, dial, lines)
	if err != nil {
		t.Fatal(err)
	}
	defer g.close()
	for g.counts().reconnects == 0 {
		if err := g.await(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.close()
	if c := g.counts(); c.errors != 1 || c.reconnects != 1 || len(g.errors()) != 1 {
		t.Errorf("%+v %v", c, g.errors())
	}
}

// TestAskersNoticeWrongAnswers lets a server answer something else.
func TestAskersNoticeWrongAnswers(t *testing.T) {
	dial := listenLoopback(t, func(conn net.Conn) {
		buf := make([]byte, len("line 000000000\n"))
		if _, err := io.ReadFull(conn, buf); err != nil {
			return
		}
		_, _ = conn.Write([]byte("lime 000000001\n"))
		_, _ = io.Copy(io.Discard, conn)
	})
	conn, err := dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	d := lines(0)
	d.open(conn)
	if err := d.ask(); !errors.Is(err, netnslab.ErrMismatch) {
		t.Errorf("a wrong answer: %v", err)
	}
}

func TestArrivals(t *testing.T) {
	var served atomic.Int64
	dial := listenLoopback(t, func(conn net.Conn) {
		if served.Add(1)%10 == 0 {
			_ = conn.(*net.TCPConn).SetLinger(0) // its end is a RST
			return
		}
		_, _ = io.Copy(conn, conn)
	})
	r := &arrivals{dial: dial}
	stop := make(chan struct{})
	time.AfterFunc(300*time.Millisecond, func() { close(stop) })
	r.run(t.Context(), 200, stop)
	bad := int(served.Load() / 10)
	if r.a.New < 20 || r.a.Reset+r.a.Failed != bad || r.a.Refused != 0 || len(r.times) != r.a.New-bad {
		t.Errorf("%d served, %d answers: %+v", served.Load(), len(r.times), r.a)
	}
}

func TestArrivalsRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	r := &arrivals{dial: func(ctx context.Context) (*net.TCPConn, error) {
		var d net.Dialer
		_, err := d.DialContext(ctx, "tcp", ln.Addr().String())
		return nil, err
	}}
	r.one(t.Context())
	if r.a.New != 1 || r.a.Refused != 1 {
		t.Errorf("%+v", r.a)
	}
}

func TestStream(t *testing.T) {
	for name, tt := range map[string]struct {
		serve func(conn net.Conn)
		equal bool
	}{
		"echo": {func(conn net.Conn) { _, _ = io.Copy(conn, conn) }, true},
		"a byte changes": {func(conn net.Conn) {
			one := make([]byte, 1)
			_, _ = io.ReadFull(conn, one)
			_, _ = conn.Write([]byte{^one[0]})
			_, _ = io.Copy(conn, conn)
		}, false},
		"a byte is lost": {func(conn net.Conn) {
			_, _ = io.ReadFull(conn, make([]byte, 1))
			_, _ = io.Copy(conn, conn)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := listenLoopback(t, tt.serve)(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			s := newStream(conn)
			if err := s.reach(t.Context(), 4<<20); err != nil {
				t.Fatal(err)
			}
			if err := s.finish(nil); err != nil {
				t.Fatal(err)
			}
			if got := s.equal(); got != tt.equal {
				t.Errorf("equal: %v, want %v, after %d of %d bytes", got, tt.equal, s.got, s.sent.Load())
			}
		})
	}
}

func TestStreamNoticesTheEnd(t *testing.T) {
	conn, err := listenLoopback(t, func(conn net.Conn) { _, _ = io.CopyN(conn, conn, 1<<20) })(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := newStream(conn)
	err = s.reach(t.Context(), 1<<40)
	if err == nil {
		t.Error("a connection that has ended reached a terabyte")
	}
	if err := s.finish(err); err == nil {
		t.Error("a connection that has ended was whole")
	}
}

func TestCounterCLI(t *testing.T) {
	for _, tt := range []struct {
		text, want string
		ending     bool
	}{
		{text: "1\n2\n3\n", ending: true},
		{text: "", ending: true},
		{text: "1\n2\n", want: "has ended"},
		{text: "1\n3\n", ending: true, want: `"3" instead of 2`},
		{text: "1\n1\n", ending: true, want: `"1" instead of 2`},
		{text: "1\n(error) ERR\n", ending: true, want: "instead of 2"},
		{text: "1\nCould not connect\n", ending: true, want: "instead of 2"},
	} {
		c := &counterCLI{}
		c.ending.Store(tt.ending)
		err := c.check(strings.NewReader(tt.text))
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q in it", tt.text, err, tt.want)
		}
	}
}

func TestPausesAdd(t *testing.T) {
	var sum Pauses
	for i, pause := range [][]float64{{1, 2}, {30}} {
		sum.Add(&Pauses{Mover: fmt.Sprint(i), Moves: 2, ClientErrors: i, pause: pause})
	}
	if sum.Moves != 4 || sum.ClientErrors != 1 || sum.Mover != "1" || sum.PauseMillis != (Milliseconds{Min: 1, Median: 2, P99: 30, Max: 30}) {
		t.Errorf("%+v", sum)
	}
}
