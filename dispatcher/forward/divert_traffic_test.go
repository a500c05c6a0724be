// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// xdpReady makes the cluster's links carry what XDP redirects.
func (c *cluster) xdpReady(t *testing.T) {
	t.Helper()
	c.entry.hub.offload(t, c.entry.port, ethtoolGRO, 1)
	for _, h := range append(c.servers, c.client, c.entry) {
		h.offload(t, "eth0", ethtoolChecksum, 0)
	}
}

// diverting opens a forwarder in a mode, with a tap.
func (c *cluster) diverting(t *testing.T, mode Mode, config Config) *Forwarder {
	t.Helper()
	if mode == XDP {
		c.xdpReady(t)
		config.Peers = []netip.Addr{netip.MustParseAddr("10.66.0.1")}
	}
	config.Mode, config.Divert = mode, true
	f := c.entry.forwarder(t, config)
	if f.Mode() != mode {
		t.Fatalf("mode %v", f.Mode())
	}
	c.configure(t, f)
	return f
}

// divert runs Divert until stop is called, or the test ends.
func divert(t *testing.T, f *Forwarder, decide func(Diverted)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Divert(ctx, decide) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Divert: %v", err)
		}
	})
	t.Cleanup(stop)
	eventually(t, "the kernel hears of the reader", func() bool {
		var b [8]byte
		_, err := f.table.overall.ReadAt(b[:], readingAt)
		return err == nil && binary.NativeEndian.Uint64(b[:]) > uint64(monotonic())
	})
	return stop
}

// receiver collects the numbers of the datagrams that a server receives.
func receiver(t *testing.T, h *host, at string) func() []uint32 {
	t.Helper()
	var p *net.UDPConn
	h.do(t, func() (err error) {
		p, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
		if err == nil {
			err = p.SetReadBuffer(4 << 20)
		}
		return err
	})
	var mu sync.Mutex
	var got []uint32
	var running sync.WaitGroup
	running.Go(func() {
		b := make([]byte, 2000)
		for {
			n, _, err := p.ReadFromUDP(b)
			if err != nil {
				return
			}
			if n >= 4 {
				mu.Lock()
				got = append(got, binary.BigEndian.Uint32(b))
				mu.Unlock()
			}
		}
	})
	t.Cleanup(func() {
		p.Close()
		running.Wait()
	})
	return func() []uint32 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}

// The datagrams of an undecided flow wait for the decision, and reach its server, each once and in their order, among those that take the
// short way afterwards.
func TestTrafficUndecided(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		for _, vip := range []string{"10.66.0.100:9000", "[fd66::100]:9000"} {
			t.Run(mode.String()+"/"+vip, func(t *testing.T) {
				const before, datagrams = 20, 1000
				c := newCluster(t)
				f := c.diverting(t, mode, Config{})
				at := netip.MustParseAddrPort(vip)
				if err := f.UDP().SetHandling(at, Handling{Divert: true, MaxWaiting: 2 * datagrams}); err != nil {
					t.Fatal(err)
				}
				got := receiver(t, c.servers[1], vip)
				var held []Diverted
				var decided atomic.Bool
				divert(t, f, func(d Diverted) {
					// Twenty wait before anybody decides.
					if held = append(held, d.Clone()); len(held) < before && !decided.Load() {
						return
					}
					if !decided.Swap(true) {
						if _, err := f.UDP().Assign(d.Flow, 2, false); err != nil {
							t.Error(err)
						}
					}
					for _, d := range held {
						if err := f.Send(d, 2); err != nil {
							t.Error(err)
						}
					}
					held = held[:0]
				})
				conn := c.dial(t, "udp", vip)
				tick := time.NewTicker(100 * time.Microsecond)
				defer tick.Stop()
				for i := range uint32(datagrams) {
					if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
						t.Fatal(err)
					}
					<-tick.C
				}
				eventually(t, "all arrive", func() bool { return len(got()) >= datagrams })
				for i, n := range got() {
					if n != uint32(i) {
						t.Fatalf("datagram %d arrived in place %d", n, i)
					}
				}
				s := f.Stats()
				t.Logf("%d of %d diverted", s.Diverted, datagrams)
				if s.Diverted < before || s.Unread+s.Crowded != 0 {
					t.Errorf("%+v", s)
				}
				eventually(t, "the short way is taken", func() bool {
					diverted, arrived := f.Stats().Diverted, len(got())
					if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, datagrams)); err != nil {
						t.Fatal(err)
					}
					eventually(t, "another datagram arrives", func() bool { return len(got()) > arrived })
					return f.Stats().Diverted == diverted
				})
				if r, err := f.UDP().Route(flowOf(conn)); err != nil || r.Node != 2 || r.Epoch != 2 {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
	}
}

// The datagrams of an undecided flow that do not fit a frame reach whoever decides as a whole, and their server as they were sent. So do those of a flow that
// is inspected, and those that take the short way afterwards.
func TestTrafficFragments(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		for _, vip := range []string{"10.66.0.100:9000", "[fd66::100]:9000"} {
			for _, inspect := range []bool{false, true} {
				t.Run(fmt.Sprintf("%v/%s/%v", mode, vip, inspect), func(t *testing.T) {
					c := newCluster(t)
					f := c.diverting(t, mode, Config{})
					if err := f.UDP().SetHandling(netip.MustParseAddrPort(vip), Handling{Divert: true, Inspect: inspect}); err != nil {
						t.Fatal(err)
					}
					var server *net.UDPConn
					c.servers[1].do(t, func() (err error) {
						server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(vip)))
						return err
					})
					defer server.Close()
					text := make([]byte, 5000)
					for i := range text {
						text[i] = byte(i % 251)
					}
					var seen, sent atomic.Int64
					divert(t, f, func(d Diverted) {
						d = d.Clone()
						if !bytes.Equal(d.Payload, text) {
							t.Errorf("%d bytes came by user space, not what was sent", len(d.Payload))
						}
						seen.Add(1)
						if d.Reason == Undecided {
							if _, err := f.UDP().Assign(d.Flow, 2, inspect); err != nil {
								t.Error(err)
							}
						}
						if err := f.Send(d, 2); err != nil {
							t.Error(err)
						}
						sent.Add(1)
					})
					conn := c.dial(t, "udp", vip)
					got := make([]byte, 1<<16)
					const datagrams = 5
					for i := range datagrams {
						if _, err := conn.Write(text); err != nil {
							t.Fatal(err)
						}
						_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
						n, _, err := server.ReadFromUDP(got)
						if err != nil || !bytes.Equal(got[:n], text) {
							t.Fatalf("datagram %d: the server has %d bytes, %v; %+v", i, n, err, f.Stats())
						}
						// Send releases the flow after the server has the datagram.
						eventually(t, "Send returns", func() bool { return sent.Load() == seen.Load() && sent.Load() > 0 })
					}
					if n := seen.Load(); inspect && n != datagrams || !inspect && n != 1 {
						t.Errorf("%d of %d datagrams came by user space", n, datagrams)
					}
					if s := f.Stats(); s.Incomplete+s.Unread+s.Crowded+s.NoNode+s.Loop > 0 {
						t.Errorf("%+v", s)
					}
				})
			}
		}
	}
}

// shortWay waits until a flow's datagrams do not come by user space any more. On a busy machine the client may be answered, and have sent the
// next datagram, before Send comes to the release.
func shortWay(t *testing.T, f *Forwarder, conn net.Conn, server string) {
	t.Helper()
	eventually(t, "datagrams take the short way", func() bool {
		before := f.Stats().Diverted
		if s := who(t, conn); s != server {
			t.Errorf("answered by %s, want %s", s, server)
		}
		return f.Stats().Diverted == before
	})
}

// A datagram that this host keeps reaches its own stack, as if it had just arrived.
func TestTrafficKept(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		c := newCluster(t)
		f := c.diverting(t, mode, Config{})
		for _, vip := range []string{vip4, vip6} {
			if err := f.UDP().SetHandling(netip.MustParseAddrPort(vip), Handling{Divert: true}); err != nil {
				t.Fatal(err)
			}
		}
		divert(t, f, func(d Diverted) {
			if d.Reason == Undecided {
				if _, err := f.UDP().Assign(d.Flow, 0, false); err != nil && !errors.Is(err, gate.ErrExists) {
					t.Error(err)
				}
			}
			if err := f.Send(d, 0); err != nil {
				t.Error(err)
			}
		})
		for _, vip := range []string{vip4, vip6} {
			conn := c.dial(t, "udp", vip)
			if s := who(t, conn); s != "0" || f.Stats().Diverted == 0 {
				t.Errorf("%v, %s: answered by %s", mode, vip, s)
			}
			shortWay(t, f, conn, "0")
			if r, err := f.UDP().Route(flowOf(conn)); err != nil || r.Node != 0 || r.Epoch != 2 {
				t.Errorf("%+v, %v", r, err)
			}
		}
	}
}

// A signalling connection's bytes are seen before its server sees them, also when the kernel has put many segments into one packet. An
// announcement made then comes before what the server may do about it.
func TestTrafficInspected(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		for _, vip := range []string{vip4, vip6} {
			t.Run(mode.String()+"/"+vip, func(t *testing.T) {
				c := newCluster(t)
				f := c.diverting(t, mode, Config{})
				if err := f.SetHandling(netip.MustParseAddrPort(vip), Handling{Inspect: true, MaxWaiting: 1000}); err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				seen := make(map[uint32]byte) // by sequence number
				first := uint32(0)
				stop := divert(t, f, func(d Diverted) {
					mu.Lock()
					if d.Flags&syn != 0 {
						first = d.Sequence + 1
					}
					for i, b := range d.Payload {
						seen[d.Sequence-first+uint32(i)] = b
					}
					mu.Unlock()
					if d.Reason != Inspected || d.Node == 0 {
						t.Errorf("%v, node %d", d.Reason, d.Node)
					}
					if err := f.Send(d, d.Node); err != nil {
						t.Error(err)
					}
				})
				conn := c.dial(t, "tcp", vip)
				server := who(t, conn)
				upload := bytes.Repeat([]byte("rehome-"), 30000)[:200<<10]
				go func() {
					if _, err := conn.Write(upload); err != nil {
						t.Error(err)
					}
				}()
				// The server echoes chunks with its number in front of each; the rest must be the upload.
				var back []byte
				b := make([]byte, 64<<10)
				if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				for len(bytes.ReplaceAll(back, []byte(server), nil)) < len(upload) {
					n, err := conn.Read(b)
					if err != nil {
						t.Fatal(err)
					}
					back = append(back, b[:n]...)
				}
				if !bytes.Equal(bytes.ReplaceAll(back, []byte(server), nil), upload) {
					t.Error("the server has read something else")
				}
				mu.Lock()
				whole := append([]byte("who"), upload...)
				for i := range whole {
					if b, ok := seen[uint32(i)]; !ok || b != whole[i] {
						t.Errorf("byte %d of the connection was not seen, or as %q", i, b)
						break
					}
				}
				mu.Unlock()
				// The reader ends, and the connection goes on by itself.
				stop()
				before := f.Stats().Diverted
				for range 20 {
					if s := who(t, conn); s != server {
						t.Errorf("served by %s, then %s", server, s)
					}
				}
				if got := f.Stats().Diverted; got != before {
					t.Errorf("%d diverted without a reader", got-before)
				}
			})
		}
	}
}

// A reader that falls silent costs its flows at most Config.DivertTimeout.
func TestReaderFallsSilent(t *testing.T) {
	c := newCluster(t)
	f := c.diverting(t, TCX, Config{DivertTimeout: 500 * time.Millisecond})
	if err := errors.Join(
		f.SetHandling(netip.MustParseAddrPort(vip4), Handling{Inspect: true}),
		f.UDP().SetHandling(netip.MustParseAddrPort(vip4), Handling{Divert: true}),
	); err != nil {
		t.Fatal(err)
	}
	silent, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	divert(t, f, func(d Diverted) {
		if bytes.Equal(d.Payload, []byte("halt")) {
			once.Do(func() { close(silent) })
			<-release
		}
		if d.Reason == Undecided {
			_, _ = f.UDP().Assign(d.Flow, 1, false)
			d.Node = 1
		}
		if err := f.Send(d, d.Node); err != nil {
			t.Error(err)
		}
	})
	defer close(release)
	conn, known := c.dial(t, "tcp", vip4), c.dial(t, "udp", vip4)
	server := who(t, conn)
	if s := who(t, known); s != "1" {
		t.Errorf("datagram served by %s", s)
	}
	if _, err := c.dial(t, "udp", vip4).Write([]byte("halt")); err != nil {
		t.Fatal(err)
	}
	<-silent
	start := time.Now()
	if s := who(t, conn); s != server {
		t.Errorf("served by %s, then %s", server, s)
	}
	t.Logf("an inspected connection waited for %v", time.Since(start))
	if s := who(t, known); s != "1" {
		t.Errorf("a known datagram flow is served by %s", s)
	}
	before := f.Stats().Unread
	if _, err := c.dial(t, "udp", vip4).Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an unknown flow is dropped and counted", func() bool { return f.Stats().Unread > before })
}

// Announced flows of both kinds of FTP, and of media, with real connections: the first packet already goes to the server.
func TestTrafficAnnounced(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		c := newCluster(t)
		f := c.diverting(t, mode, Config{})
		for _, vip := range []string{"10.66.0.100", "fd66::100"} {
			server := netip.MustParseAddr(vip)
			client := netip.MustParseAddr("10.66.0.1")
			if server.Is6() {
				client = netip.MustParseAddr("fd66::1")
			}
			anyPort := netip.AddrPortFrom(client, 0)
			// Media: both ports are known.
			media := netip.AddrPortFrom(server, 5004)
			got := receiver(t, c.servers[1], media.String())
			var conn net.Conn
			c.client.do(t, func() (err error) {
				d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(client, 6004))}
				conn, err = d.DialContext(t.Context(), "udp", media.String())
				return err
			})
			defer conn.Close()
			if err := f.Announce(Announcement{Client: netip.AddrPortFrom(client, 6004), Server: media, Protocol: unix.IPPROTO_UDP, Node: 2}); err != nil {
				t.Fatal(err)
			}
			for i := range uint32(100) {
				if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, i)); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "all media arrives", func() bool { return len(got()) == 100 })
			// Passive: the client connects, from any port.
			data := netip.AddrPortFrom(server, 40000)
			serve(t, c.servers[1], 2, data.String())
			if err := f.Announce(Announcement{Client: anyPort, Server: data, Protocol: unix.IPPROTO_TCP, Node: 2}); err != nil {
				t.Fatal(err)
			}
			if s := who(t, c.dial(t, "tcp", data.String())); s != "2" {
				t.Errorf("%v: passive data connection served by %s", mode, s)
			}
			// Active: the server connects to the client, from a port nobody knows; the client's packets come here.
			var l net.Listener
			c.client.do(t, func() (err error) {
				l, err = net.Listen("tcp", netip.AddrPortFrom(client, 45000).String())
				return err
			})
			defer l.Close()
			if err := f.Announce(Announcement{Client: netip.AddrPortFrom(client, 45000), Server: netip.AddrPortFrom(server, 0), Protocol: unix.IPPROTO_TCP, Node: 2}); err != nil {
				t.Fatal(err)
			}
			arrived := make(chan error, 1)
			go func() {
				in, err := l.Accept()
				if err == nil {
					defer in.Close()
					_, err = io.WriteString(in, "hello from the client")
				}
				arrived <- err
			}()
			var out net.Conn
			c.servers[1].do(t, func() (err error) {
				d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(server, 0)), Timeout: 5 * time.Second}
				d.SetMultipathTCP(false)
				out, err = d.DialContext(t.Context(), "tcp", netip.AddrPortFrom(client, 45000).String())
				return err
			})
			text, err := io.ReadAll(out)
			if err != nil || string(text) != "hello from the client" {
				t.Errorf("%v: active data connection: %q, %v", mode, text, err)
			}
			out.Close()
			if err := <-arrived; err != nil {
				t.Error(err)
			}
		}
		// One of media, one passive, one active, for each version; no more, and nothing asked of user space.
		if s := f.Stats(); s.Secondary != 6 || s.Diverted != 0 {
			t.Errorf("%v: %+v", mode, s)
		}
	}
}

// A new process takes over the pinned tables with a tap of its own; flows that its predecessor left undecided are decided by it.
func TestDivertRestart(t *testing.T) {
	c := newCluster(t)
	path := bpffs(t)
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 1000, Divert: true, DivertTimeout: 200 * time.Millisecond}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, f)
	at := netip.MustParseAddrPort(vip4)
	if err := f.UDP().SetHandling(at, Handling{Divert: true}); err != nil {
		t.Fatal(err)
	}
	seen := make(chan tcprepair.Flow, 1)
	stop := divert(t, f, func(d Diverted) { seen <- d.Flow }) // and not sent
	conn := c.dial(t, "udp", vip4)
	if _, err := conn.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	if got := <-seen; got != flowOf(conn) {
		t.Errorf("diverted %v", got)
	}
	stop()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = c.entry.open(t, config); err != nil {
		t.Fatal(err)
	}
	var reasons []Reason
	stop = divert(t, f, func(d Diverted) {
		reasons = append(reasons, d.Reason)
		if d.Reason == Undecided {
			if _, err := f.UDP().Assign(d.Flow, 2, false); err != nil {
				t.Error(err)
			}
		}
		if err := f.Send(d, 2); err != nil {
			t.Error(err)
		}
	})
	shortWay(t, f, conn, "2")
	stop()
	if len(reasons) == 0 || reasons[0] != Undecided || slices.Contains(reasons[1:], Undecided) {
		t.Errorf("%v: want one packet of an undecided flow", reasons)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	c.entry.expect(t, "removed")
}
