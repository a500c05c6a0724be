// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

func confirmAll(context.Context, Said) error { return nil }

// talk is a connection of the client to b1, seen from both ends.
func (r *rig) talk(t testing.TB, vip netip.Addr) (client, server net.Conn) {
	t.Helper()
	at := netip.AddrPortFrom(vip, signalPort).String()
	l, err := r.b1.Listen(t.Context(), "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = r.client.Dial(t.Context(), "tcp", at); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	_ = client.SetDeadline(time.Now().Add(patience))
	_ = server.SetDeadline(time.Now().Add(patience))
	return client, server
}

// started returns a running gateway that is connected to its dispatcher.
func (r *rig) started(t testing.TB, c Config, install func(context.Context, Said) error) (*Gateway, *Server) {
	t.Helper()
	g := r.open(t, c)
	s := dispatcherFor(t, g, install)
	run(t, g)
	eventually(t, "connected", func() bool { return g.Stats().Connected })
	return g, s
}

// The client has the reply only after the dispatcher has confirmed it.
func TestReplyWaitsForInstalled(t *testing.T) {
	r := newRig(t)
	for _, vip := range []netip.Addr{r.vip4, r.vip6} {
		t.Run(vip.String(), func(t *testing.T) {
			asked, answer := make(chan Said, 1), make(chan struct{})
			c := r.config(t)
			c.Hold = time.Second
			g, s := r.started(t, c, func(_ context.Context, said Said) error {
				asked <- said
				<-answer
				return nil
			})
			client, server := r.talk(t, vip)
			if _, err := server.Write([]byte("hello\nsay port 6000\n")); err != nil {
				t.Fatal(err)
			}
			said := <-asked
			if said.Halves[0].Session != "port 6000" || said.Flow.Server.Addr() != vip || said.Flow.Client != client.LocalAddr().(*net.TCPAddr).AddrPort() {
				t.Errorf("said %+v", said)
			}
			b := make([]byte, 100)
			_ = client.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
			if n, err := client.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client has %q before it is installed: %v", b[:n], err)
			}
			close(answer)
			_ = client.SetReadDeadline(time.Now().Add(patience))
			if n, err := client.Read(b); err != nil || string(b[:n]) != "hello\nsay port 6000\n" {
				t.Errorf("%q, %v", b[:n], err)
			}
			eventually(t, "counted", func() bool { return g.Stats().Confirmed == 1 })
			if st := g.Stats(); st.Late != 0 || st.Reports != 1 || s.Stats().Reports != 1 {
				t.Errorf("%+v, %+v", st, s.Stats())
			}
		})
	}
}

// A dispatcher that does not answer, and one that is away, cost the client the time that is configured and no more.
func TestReplyDoesNotWaitForever(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away %v", away), func(t *testing.T) {
			r := newRig(t)
			c := r.config(t)
			c.Hold, c.Keep = 40*time.Millisecond, 500*time.Millisecond
			g := r.open(t, c)
			never := make(chan struct{})
			dispatcherFor(t, g, func(ctx context.Context, _ Said) error {
				select {
				case <-never:
				case <-ctx.Done():
				}
				return nil
			})
			defer close(never)
			if away {
				g.dial = func(context.Context) (*wire.Link, error) { return nil, errors.New("away") }
			}
			run(t, g)
			client, server := r.talk(t, r.vip4)
			began := time.Now()
			if _, err := server.Write([]byte("say a\n")); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(client).ReadString('\n')
			if d := time.Since(began); err != nil || line != "say a\n" || d < 30*time.Millisecond || d > 2*time.Second {
				t.Errorf("%q after %v, %v", line, d, err)
			}
			eventually(t, "it is late", func() bool { return g.Stats().Late == 1 })
			eventually(t, "it is given up", func() bool { return g.Stats().Expired == 1 })
		})
	}
}

// A report whose connection broke is repeated on the next.
func TestReportIsRepeated(t *testing.T) {
	r := newRig(t)
	c := r.config(t)
	c.Hold = time.Second
	g := r.open(t, c)
	var tries atomic.Int32
	dispatcherFor(t, g, confirmAll)
	good := g.dial
	broken, err := NewServer(ServerConfig{Gateways: []string{"gw"}, Install: func(context.Context, Said) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	g.dial = func(ctx context.Context) (*wire.Link, error) {
		if tries.Add(1) > 1 {
			return good(ctx)
		}
		near, far := net.Pipe()
		link := wire.NewLink(far)
		go func() { // greets, and breaks at the first report
			f, _, err := link.Receive()
			if err == nil {
				greeted := false
				_ = broken.answer(ctx, "gw", link, f, &greeted)
				link.Flush()
				_, _, _ = link.Receive()
			}
			_ = link.Close()
		}()
		return wire.NewLink(near), nil
	}
	run(t, g)
	eventually(t, "connected", func() bool { return g.Stats().Connected })
	client, server := r.talk(t, r.vip4)
	if _, err := server.Write([]byte("say a\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(client).ReadString('\n'); err != nil || line != "say a\n" {
		t.Errorf("%q, %v", line, err)
	}
	if st := g.Stats(); st.Late != 0 || st.Connections != 2 || st.Confirmed != 1 {
		t.Errorf("%+v", st)
	}
}

// Bytes on a signalling connection arrive as they were sent, also those of a long stream; and go on when the gateway ends.
func TestStreamIsWhole(t *testing.T) {
	const size = 4 << 20
	r := newRig(t)
	for _, vip := range []netip.Addr{r.vip4, r.vip6} {
		t.Run(vip.String(), func(t *testing.T) {
			g := r.open(t, r.config(t))
			dispatcherFor(t, g, confirmAll)
			stop := run(t, g)
			eventually(t, "connected", func() bool { return g.Stats().Connected })
			client, server := r.talk(t, vip)
			go func() {
				defer server.Close()
				ramp := netnslab.NewRamp(0, size)
				if _, err := io.CopyN(server, ramp, size/2); err != nil {
					return
				}
				stop()
				_, _ = io.Copy(server, ramp)
			}()
			n, err := io.Copy(netnslab.NewRampVerifier(0), client)
			if err != nil {
				t.Error(err)
			}
			if n != size {
				t.Errorf("%d bytes, want %d", n, size)
			}
		})
	}
}

// Datagrams of one flow leave in the order in which they came, while some of them wait.
func TestDatagramsKeepTheirOrder(t *testing.T) {
	const count = 2000
	r := newRig(t)
	for _, vip := range []netip.Addr{r.vip4, r.vip6} {
		t.Run(vip.String(), func(t *testing.T) {
			g, _ := r.started(t, r.config(t), func(context.Context, Said) error {
				time.Sleep(100 * time.Microsecond)
				return nil
			})
			client, err := r.client.ListenPacket(t.Context(), "udp", ":0")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			server, err := r.b1.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(vip, datagrams).String())
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			own := r.client.Addr4()
			if vip.Is6() {
				own = r.client.Addr6()
			}
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, client.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
			window := make(chan struct{}, 100)
			go func() {
				for i := range count {
					word := "word"
					if i%10 == 0 {
						word = "say"
					}
					window <- struct{}{}
					if _, err := server.WriteTo(fmt.Appendf(nil, "%s %d\n", word, i), to); err != nil {
						return
					}
				}
			}()
			_ = client.SetReadDeadline(time.Now().Add(patience))
			b := make([]byte, 100)
			for i := range count {
				n, _, err := client.ReadFrom(b)
				if err != nil {
					t.Fatalf("after %d: %v; %+v", i, err, g.Stats())
				}
				<-window
				if _, number, _ := strings.Cut(strings.TrimSpace(string(b[:n])), " "); number != strconv.Itoa(i) {
					t.Fatalf("datagram %q in the place of %d", b[:n], i)
				}
			}
			if st := g.Stats(); st.Reports != count/10 || st.Diverted != count || st.Lost != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// Another host that uses the service's address gets nothing through.
func TestSpoofedReplyIsRefused(t *testing.T) {
	r := newRig(t)
	g, s := r.started(t, r.config(t), confirmAll)
	client, err := r.client.ListenPacket(t.Context(), "udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(r.client.Addr4(), client.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
	for _, h := range []*netnslab.Host{r.b2, r.b1} {
		server, err := h.ListenPacket(t.Context(), "udp", netip.AddrPortFrom(r.vip4, datagrams).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.WriteTo([]byte("say "+h.Name()+"\n"), to); err != nil {
			t.Fatal(err)
		}
		_ = server.Close()
	}
	_ = client.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	n, _, err := client.ReadFrom(b)
	if err != nil || strings.TrimSpace(string(b[:n])) != "say b1" {
		t.Errorf("the client has %q, %v", b[:n], err)
	}
	if st := g.Stats(); st.Unknown != 0 || st.Refused != 1 || s.Stats().Reports != 1 {
		t.Errorf("%+v, %+v", st, s.Stats())
	}
}

func BenchmarkReply(b *testing.B) {
	for _, on := range []bool{false, true} {
		name := "routed"
		if on {
			name = "diverted and confirmed"
		}
		b.Run(name, func(b *testing.B) {
			r := newRig(b)
			if on {
				r.started(b, r.config(b), confirmAll)
			}
			client, server := r.talk(b, r.vip4)
			_ = client.SetDeadline(time.Time{})
			_ = server.SetDeadline(time.Time{})
			go func() {
				line := make([]byte, 100)
				for {
					if _, err := server.Read(line); err != nil {
						return
					}
					if _, err := server.Write([]byte("say port 6000\n")); err != nil {
						return
					}
				}
			}()
			reply := make([]byte, 100)
			b.ResetTimer()
			for range b.N {
				if _, err := client.Write([]byte("what?\n")); err != nil {
					b.Fatal(err)
				}
				if _, err := client.Read(reply); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
