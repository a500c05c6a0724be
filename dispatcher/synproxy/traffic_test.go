// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// echo answers whatever comes, on every connection.
func echo(t testing.TB, l net.Listener) {
	t.Helper()
	var open sync.WaitGroup
	open.Add(1)
	go func() {
		defer open.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			go func() {
				defer open.Done()
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		open.Wait()
	})
}

// A client that uses a port again at once meets TIME_WAIT at the server, or at home.
func TestPortAgain(t *testing.T) {
	for _, serverFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("server closes first=%t", serverFirst), func(t *testing.T) {
			versions(t, func(t *testing.T, v6 bool) {
				r := newRig(t, rigConfig{})
				l := listen(t, r.servers[0], all(port), false)
				const rounds = 30
				for i := range rounds {
					var c *net.TCPConn
					eventually(t, "the client's own kernel is done with the last one", func() (ok bool) {
						var err error
						c, err = r.tryDial(r.at(v6), 40000, option{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1})
						if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
							t.Fatal(err)
						}
						return err == nil
					})
					send(t, "request", c, i, 100)
					s := accept(t, l)
					expect(t, "request", s, i, 100)
					send(t, "answer", s, i, 100)
					expect(t, "answer", c, i, 100)
					undisturbed(t, c)
					ends := []*net.TCPConn{c, s}
					if serverFirst {
						ends = []*net.TCPConn{s, c}
					} else if err := c.SetLinger(0); err != nil { // lest the client's own TIME_WAIT keep the port
						t.Fatal(err)
					}
					_ = ends[0].Close()
					if n, err := ends[1].Read(make([]byte, 1)); n != 0 || err == nil {
						t.Errorf("%d bytes, %v, want the end", n, err)
					}
					_ = ends[1].Close()
				}
				a := r.accepted(t, 0)
				if a.Made != rounds || a.Refused != 0 || serverFirst && a.Cleared == 0 {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// A kept connection goes on after pauses, with whole windows in both directions.
func TestKeptConnection(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{})
		l := listen(t, r.servers[0], all(port), false)
		c := r.dial(t, r.at(v6), 0)
		send(t, "request", c, 0, 500)
		s := accept(t, l)
		expect(t, "request", s, 0, 500)
		undisturbed(t, c)
		const much = 64 << 20
		for what, way := range map[string][2]*net.TCPConn{"download": {s, c}, "upload": {c, s}} {
			start := time.Now()
			transfer(t, what, way[0], way[1], 500, much)
			t.Logf("%s: %.1f Gb/s", what, 8*much/time.Since(start).Seconds()/1e9)
		}
		time.Sleep(300 * time.Millisecond) // longer than a retransmission timeout: is everything acknowledged?
		transfer(t, "afterwards", c, s, 0, 1000)
		if info, err := netnslab.ReadTCPInfo(c); err != nil || info.Timeouts != 0 {
			t.Errorf("%+v, %v", info, err)
		}
	})
}

// With a long way, throughput needs large windows: they are scaled as the client believes.
func TestLongWay(t *testing.T) {
	r := newRig(t, rigConfig{})
	half := netnslab.Impairment{Delay: 20 * time.Millisecond}
	if _, err := r.lab.Impair(t.Context(), "client", half, half); err != nil {
		t.Fatal(err)
	}
	l := listen(t, r.servers[0], all(port), false)
	c := r.dial(t, r.at(false), 0)
	send(t, "request", c, 0, 500)
	s := accept(t, l)
	expect(t, "request", s, 0, 500)
	info, err := netnslab.ReadTCPInfo(s)
	if err != nil {
		t.Fatal(err)
	}
	// The dispatcher has measured it and told the server.
	if info.RTT < 30*time.Millisecond || info.RTT > 80*time.Millisecond {
		t.Errorf("the server takes the way for %v, want about 40ms", info.RTT)
	}
	const much = 16 << 20
	for what, way := range map[string][2]*net.TCPConn{"download": {s, c}, "upload": {c, s}} {
		start := time.Now()
		transfer(t, what, way[0], way[1], 500, much)
		took := time.Since(start)
		t.Logf("%s: %.0f Mb/s", what, 8*much/took.Seconds()/1e6)
		// 64 KiB in 40 ms, which is what there is without scaling, would take ten seconds.
		if took > 5*time.Second {
			t.Errorf("%s took %v", what, took)
		}
	}
	undisturbed(t, c)
}

// Requests of many sizes, in one write. The first flight, ten segments, arrives before anybody has acknowledged anything.
func TestRequestSizes(t *testing.T) {
	r := newRig(t, rigConfig{stack: true})
	l := listen(t, r.servers[0], all(port), false)
	for _, size := range []int{1, 2, 100, 1447, 1448, 1449, 4000, 14000, 20000, 40000, 65536, 300000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			versions(t, func(t *testing.T, v6 bool) {
				c := r.dial(t, r.at(v6), 0)
				sent := make(chan error, 1)
				go func() {
					_, err := c.Write(ramp(t, 0, size))
					sent <- errors.Join(err, c.CloseWrite())
				}()
				s := accept(t, l)
				expect(t, "request", s, 0, size)
				if n, err := s.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("%d bytes, %v, want the end", n, err)
				}
				if err := <-sent; err != nil {
					t.Error(err)
				}
				send(t, "answer", s, 7, 1000)
				expect(t, "answer", c, 7, 1000)
				if size <= 14000 {
					undisturbed(t, c)
				} else if info, err := netnslab.ReadTCPInfo(c); err != nil || info.Timeouts != 0 {
					// More than the first flight: what follows the server's answer within microseconds may overtake what comes by the ring.
					t.Errorf("%+v, %v", info, err)
				}
			})
		})
	}
}

// What is slow or large goes to this host's own stack, and loses nothing.
func TestLocal(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{stack: true})
		here := listen(t, r.entry, all(port), false)
		r.setDecide(func(q Request) Decision {
			if bytes.HasSuffix(q.Bytes, []byte("!")) {
				return Decision{Verb: Local}
			}
			return Decision{}
		})
		for name, steps := range map[string][]int{"slow": {10, 20}, "large": {100000}, "large and slow": {1000, 100000, 10}} {
			t.Run(name, func(t *testing.T) {
				c := r.dial(t, r.at(v6), 0)
				sent := make(chan error, 1)
				total := 0
				for _, n := range steps {
					total += n
				}
				go func() {
					at := 0
					for i, n := range steps {
						if i > 0 {
							time.Sleep(120 * time.Millisecond) // longer than Patience
						}
						if _, err := c.Write(ramp(t, at, n)); err != nil {
							sent <- err
							return
						}
						at += n
					}
					sent <- nil
				}()
				s := accept(t, here)
				expect(t, "request", s, 0, total)
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				transfer(t, "answer", s, c, 3, 100000)
				if name == "slow" {
					undisturbed(t, c)
				}
			})
		}
		t.Run("decided", func(t *testing.T) {
			c := r.dial(t, r.at(v6), 0)
			if _, err := c.Write([]byte("mine!")); err != nil {
				t.Fatal(err)
			}
			s := accept(t, here)
			got := make([]byte, 5)
			if _, err := io.ReadFull(s, got); err != nil || string(got) != "mine!" {
				t.Fatalf("%q, %v", got, err)
			}
			transfer(t, "answer", s, c, 0, 1<<20)
			transfer(t, "upload", c, s, 0, 1<<20)
		})
	})
}

// Clients that take only tiny segments are none of the kernel's that cookies are made of.
func TestTinySegments(t *testing.T) {
	r := newRig(t, rigConfig{})
	here := listen(t, r.entry, all(port), false)
	c := r.dial(t, r.at(false), 0, option{unix.IPPROTO_TCP, unix.TCP_MAXSEG, 300})
	s := accept(t, here)
	transfer(t, "request", c, s, 0, 10000)
	transfer(t, "answer", s, c, 0, 10000)
	if got := r.stats(t); got.Tiny != 1 {
		t.Errorf("%+v", got)
	}
}

func TestAnswerAndReset(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{})
		const text = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n"
		r.setDecide(func(q Request) Decision {
			if q.Bytes[0] == 'r' {
				return Decision{Verb: Reset}
			}
			return Decision{Verb: Answer, Answer: []byte(text)}
		})
		for range 3 {
			c := r.dial(t, r.at(v6), 0)
			if _, err := c.Write([]byte("GET /")); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(c)
			if err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
			undisturbed(t, c)
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the client's FIN is acknowledged", func() bool {
				info, err := netnslab.ReadTCPInfo(c)
				if err != nil {
					t.Fatal(err)
				}
				return info.State != 9 // LAST_ACK
			})
		}
		c := r.dial(t, r.at(v6), 0)
		if _, err := c.Write([]byte("reset me")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
		if s := r.stats(t); s.Refused != 3 || s.Reset != 1 || s.Undecided != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// A backend that cannot take a connection says why, and another one gets it.
func TestReturn(t *testing.T) {
	for _, c := range []struct {
		name   string
		reason cookie.Reason
		spoil  func(t *testing.T, r *rig)
	}{
		{"no listener", cookie.ReasonNoListener, func(*testing.T, *rig) {}},
		{"MPTCP", cookie.ReasonMPTCP, func(t *testing.T, r *rig) { listen(t, r.servers[0], all(port), true) }},
		{"syncookies off", cookie.ReasonSyncookies, func(t *testing.T, r *rig) {
			listen(t, r.servers[0], all(port), false)
			if err := r.servers[0].SetSysctl("net.ipv4.tcp_syncookies", "0"); err != nil {
				t.Fatal(err)
			}
		}},
		{"backlog full", cookie.ReasonBacklog, func(t *testing.T, r *rig) {
			l := listen(t, r.servers[0], all(port), false)
			raw, err := l.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { err = unix.Listen(int(fd), 1) }); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				full := r.dial(t, r.at(false), 0)
				send(t, "request", full, 0, 10)
			}
			eventually(t, "the queue is full", func() bool { return r.accepted(t, 0).Made == 2 })
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			versions(t, func(t *testing.T, v6 bool) {
				r := newRig(t, rigConfig{servers: 2, retry: true})
				r.setDecide(func(q Request) Decision { return Decision{Verb: Forward, Node: gate.Node(1 + q.Returned)} })
				c.spoil(t, r)
				l := listen(t, r.servers[1], all(port), false)
				for i := range 5 {
					cl := r.dial(t, r.at(v6), 0)
					send(t, "request", cl, i, 1000)
					s := accept(t, l)
					expect(t, "request", s, i, 1000)
					transfer(t, "answer", s, cl, 0, 100000)
					undisturbed(t, cl)
				}
				reports := r.reported()
				if len(reports) != 5 {
					t.Errorf("%d reports", len(reports))
				}
				for _, report := range reports {
					if report.Reason != c.reason {
						t.Errorf("%v: %v", report.Flow, report.Reason)
					}
				}
			})
		})
	}
}

// Secrets change while connections come and go.
func TestRotation(t *testing.T) {
	r := newRig(t, rigConfig{})
	echo(t, listen(t, r.servers[0], all(port), false))
	ctx, cancel := context.WithCancel(t.Context())
	var done atomic.Int64
	failed := make(chan error, 4)
	for range 4 {
		go func() {
			for ctx.Err() == nil {
				if err := r.ping(r.at(false)); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
			failed <- nil
		}()
	}
	old := r.secret
	const rotations = 20
	for i := range rotations {
		next := cookie.Secret{byte(i), 99}
		err := errors.Join(
			r.acceptors[0].SetParameters(cookie.Parameters{Secret: old, Also: next}),
			r.proxy.SetParameters(cookie.Parameters{Secret: next, Also: old}),
		)
		if err != nil {
			t.Fatal(err)
		}
		before := done.Load()
		eventually(t, "connections go on", func() bool { return done.Load() > before+20 })
		old = next
	}
	cancel()
	for range 4 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	if s := r.stats(t); s.Invalid != 0 {
		t.Errorf("%+v", s)
	}
	t.Logf("%d connections", done.Load())
}

// ping makes a connection, has something echoed and looks whether anything was sent twice.
func (r *rig) ping(to netip.AddrPort) error {
	c, err := r.tryDial(to, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	want := []byte("a request of some bytes")
	if _, err := c.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(want, got) {
		return fmt.Errorf("%q came back", got)
	}
	info, err := netnslab.ReadTCPInfo(c)
	if err != nil {
		return err
	}
	if info.Retransmitted != 0 {
		return fmt.Errorf("%v: %d segments sent again", c.LocalAddr(), info.Retransmitted)
	}
	return nil
}

// Every packet may be lost, doubled or overtaken.
func TestBadNetwork(t *testing.T) {
	r := newRig(t, rigConfig{stack: true})
	echo(t, listen(t, r.servers[0], all(port), false))
	bad := netnslab.Impairment{Delay: time.Millisecond, Loss: 0.05, Reorder: 0.2, ReorderBy: 2 * time.Millisecond, Duplicate: 0.2, Seed: 3}
	if _, err := r.lab.Impair(t.Context(), "client", bad, bad); err != nil {
		t.Fatal(err)
	}
	const clients, each = 20, 5
	failed := make(chan error, clients)
	for i := range clients {
		go func() {
			failed <- func() error {
				for j := range each {
					c, err := r.tryDial(r.at(j%2 == 0), 0)
					if err != nil {
						return err
					}
					_ = c.SetDeadline(time.Now().Add(40 * time.Second))
					want := bytes.Repeat([]byte(fmt.Sprintf("%d.%d ", i, j)), 1500)
					go func() {
						_, _ = c.Write(want)
						_ = c.CloseWrite()
					}()
					got, err := io.ReadAll(c)
					_ = c.Close()
					if err != nil {
						return err
					}
					if !bytes.Equal(got, want) {
						return fmt.Errorf("%d bytes came back, %d were sent", len(got), len(want))
					}
				}
				return nil
			}()
		}()
	}
	for range clients {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	a := r.accepted(t, 0)
	if a.Made+r.stats(t).Local < clients*each || a.Made > clients*each {
		t.Errorf("%d connections of clients: %+v, %+v", clients*each, a, r.stats(t))
	}
	t.Logf("%+v\n%+v", r.stats(t), a)
}

// Those that are served at once do not make others wait longer than they may.
func TestSlowAmongFast(t *testing.T) {
	r := newRig(t, rigConfig{stack: true})
	echo(t, listen(t, r.servers[0], all(port), false))
	here := listen(t, r.entry, all(port), false)
	r.setDecide(func(q Request) Decision {
		if q.Bytes[0] == 0 { // the ramp's first
			return Decision{}
		}
		return Decision{Verb: Forward, Node: 1}
	})
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := r.ping(r.at(false)); err != nil {
				failed <- err
				return
			}
		}
		failed <- nil
	}()
	eventually(t, "others are served", func() bool { return r.stats(t).Forwarded > 10 })
	c := r.dial(t, r.at(false), 0)
	send(t, "half a request", c, 0, 10)
	s := accept(t, here)
	expect(t, "half a request", s, 0, 10)
	undisturbed(t, c) // it came before the client's retransmission timeout
	transfer(t, "the rest", c, s, 10, 1000)
	cancel()
	if err := <-failed; err != nil {
		t.Error(err)
	}
}
