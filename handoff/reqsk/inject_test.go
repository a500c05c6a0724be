// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

// families are the ways to reach a server.
func (r *rig) families() []struct {
	name   string
	vip    netip.Addr
	listen string // where the server listens
} {
	return []struct {
		name   string
		vip    netip.Addr
		listen string
	}{
		{"v4", r.vip4, r.vip4.String() + ":80"},
		{"v6", r.vip6, "[" + r.vip6.String() + "]:80"},
		{"v4 on dual stack", r.vip4, "[::]:80"},
		{"v4 any", r.vip4, "0.0.0.0:80"},
	}
}

// converse checks a connection that has just been injected, with n bytes of request, from both ends and both ways.
func converse(t testing.TB, client, server *net.TCPConn, n int) {
	t.Helper()
	const reply = 300_000
	expect(t, "request", server, 0, n)
	go func() {
		_, _ = server.Write(ramp(t, 7, reply))
	}()
	expect(t, "reply", client, 7, reply)
	send(t, "second request", client, n, 5000)
	expect(t, "second request", server, n, 5000)
	send(t, "second reply", server, 11, 5000)
	expect(t, "second reply", client, 11, 5000)
	undisturbed(t, client)
}

func TestInject(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families() {
		t.Run(f.name, func(t *testing.T) {
			entry := r.entryListener(t, at(f.vip, 80))
			server := r.listen(t, f.listen)
			for _, n := range []int{0, 1, 100, 1448, 1449, 16 << 10, 32 << 10, 60_000, 64 << 10} {
				t.Run(itoa(n), func(t *testing.T) {
					client, s := r.snapshot(t, entry, ramp(t, 0, n), false)
					if err := in.Inject(s); err != nil {
						t.Fatal(err)
					}
					c := accept(t, server)
					if got := c.RemoteAddr().(*net.TCPAddr).AddrPort(); netip.AddrPortFrom(got.Addr().Unmap(), got.Port()) != s.Flow.Remote {
						t.Errorf("the server sees client %v, want %v", got, s.Flow.Remote)
					}
					if c.RemoteAddr().String() != client.LocalAddr().String() || c.LocalAddr().String() != client.RemoteAddr().String() {
						t.Errorf("server has %v-%v, client %v-%v", c.RemoteAddr(), c.LocalAddr(), client.LocalAddr(), client.RemoteAddr())
					}
					converse(t, client, c, n)
				})
			}
		})
	}
}

func TestOptions(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for i := range 8 {
		on := func(bit int) string { return itoa(i >> bit & 1) }
		t.Run(fmt.Sprintf("timestamps %s sack %s scaling %s", on(0), on(1), on(2)), func(t *testing.T) {
			r.sysctl(t, r.client, "net.ipv4.tcp_timestamps", on(0))
			r.sysctl(t, r.client, "net.ipv4.tcp_sack", on(1))
			r.sysctl(t, r.client, "net.ipv4.tcp_window_scaling", on(2))
			for _, f := range r.families()[:2] {
				entry := r.entryListener(t, at(f.vip, 80))
				server := r.listen(t, f.listen)
				for _, n := range []int{200, 20_000} {
					client, s := r.snapshot(t, entry, ramp(t, 0, n), false)
					if err := in.Inject(s); err != nil {
						t.Fatal(err)
					}
					c := accept(t, server)
					want := s.Negotiated
					var info *unix.TCPInfo
					control(t, c, func(fd int) (err error) {
						info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
						return err
					})
					// TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE
					if got := info.Options & 7; got != uint8(i&1|i&2|i&4) {
						t.Errorf("options %b, want %b (%+v)", got, i, want)
					}
					converse(t, client, c, n)
				}
				_ = entry.Close()
				_ = server.Close()
			}
		})
	}
}

func TestHalfClosed(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families() {
		entry := r.entryListener(t, at(f.vip, 80))
		server := r.listen(t, f.listen)
		for _, n := range []int{0, 1, 3000, 64 << 10} {
			t.Run(f.name+" "+itoa(n), func(t *testing.T) {
				client, s := r.snapshot(t, entry, ramp(t, 0, n), true)
				if s.State != tcprepair.CloseWait {
					t.Fatalf("snapshot in %v", s.State)
				}
				if err := in.Inject(s); err != nil {
					t.Fatal(err)
				}
				c := accept(t, server)
				expect(t, "request", c, 0, n)
				if m, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Fatalf("after the request: %d bytes, %v; want the end", m, err)
				}
				send(t, "reply", c, 5, 100_000)
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				expect(t, "reply", client, 5, 100_000)
				if m, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Fatalf("after the reply: %d bytes, %v; want the end", m, err)
				}
				undisturbed(t, client)
			})
		}
		_ = entry.Close()
		_ = server.Close()
	}
}

// What the listening socket's buffer holds is taken even if nobody accepts; what is more, while the server reads.
func TestLarge(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		server := r.listen(t, f.listen)
		// A window that opened by the delayed acknowledgement only would take 40 ms each time.
		fastest := patience
		for range 5 {
			client, s := r.snapshot(t, entry, ramp(t, 0, 110<<10), false)
			start := time.Now()
			if err := in.Inject(s); err != nil {
				t.Fatal(err)
			}
			fastest = min(fastest, time.Since(start))
			converse(t, client, accept(t, server), 110<<10)
		}
		if fastest > 20*time.Millisecond {
			t.Errorf("%s: 110 KiB took %v", f.name, fastest)
		}

		client, s := r.snapshot(t, entry, ramp(t, 0, 700<<10), true)
		done := make(chan error, 1)
		go func() { done <- in.Inject(s) }()
		c := accept(t, server)
		expect(t, "request", c, 0, 700<<10)
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%d bytes, %v; want the end", n, err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		send(t, "reply", c, 0, 100)
		expect(t, "reply", client, 0, 100)
		undisturbed(t, client)
	}
}

// The client sends on while its connection is on its way. The gate keeps that from a host that has no socket yet.
func TestClientSendsMeanwhile(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	var g *gate.Gate
	if err := r.server.Do(func() (err error) {
		g, err = gate.Open(gate.Config{Interfaces: []string{"eth0"}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	defer func() {
		cancel()
		if err := errors.Join(<-ran, g.Close()); err != nil {
			t.Error(err)
		}
	}()
	for _, f := range r.families()[:3] {
		entry := r.entryListener(t, at(f.vip, 80))
		server := r.listen(t, f.listen)
		r.path(t, r.entryMAC)
		p := r.peek(t, entry, ramp(t, 0, 5000), false)
		flow := tcprepair.NewFlow(p.entry.LocalAddr().(*net.TCPAddr).AddrPort(), p.entry.RemoteAddr().(*net.TCPAddr).AddrPort())
		if err := g.Hold(flow, gate.Ingress, patience); err != nil {
			t.Fatal(err)
		}
		r.path(t, r.serverMAC)
		send(t, "more", p.client, 5000, 3000)
		eventually(t, "the gate holds it", func() bool { return g.Stats().Held > 0 })
		s := r.take(t, p)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Release(flow); err != nil {
			t.Fatal(err)
		}
		c := accept(t, server)
		expect(t, "request", c, 0, 8000)
		send(t, "reply", c, 0, 50_000)
		expect(t, "reply", p.client, 0, 50_000)
		undisturbed(t, p.client)
		_ = entry.Close()
		_ = server.Close()
	}
}

func TestReusePort(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	reuse := option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1}
	const members, connections = 4, 64
	got := make(chan int, connections)
	for i := range members {
		l := r.listen(t, "0.0.0.0:80", reuse)
		go func() {
			for {
				c, err := l.AcceptTCP()
				if err != nil {
					return
				}
				_ = c.Close()
				got <- i
			}
		}()
	}
	var count [members]int
	for range connections {
		_, s := r.snapshot(t, entry, ramp(t, 0, 10), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		select {
		case i := <-got:
			count[i]++
		case <-time.After(patience):
			t.Fatal("nobody accepts")
		}
	}
	for i, n := range count {
		if n == 0 {
			t.Errorf("member %d of the group got none: %v", i, count)
		}
	}
}

// Servers may set these on their listening sockets.
func TestListenerOptions(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for name, o := range map[string]option{
		"TCP_DEFER_ACCEPT":      {unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 5},
		"TCP_FASTOPEN":          {unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16},
		"TCP_SAVE_SYN":          {unix.IPPROTO_TCP, unix.TCP_SAVE_SYN, 1},
		"TCP_NODELAY":           {unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		"SO_KEEPALIVE":          {unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		"small SO_RCVBUF":       {unix.SOL_SOCKET, unix.SO_RCVBUF, 4096},
		"TCP_WINDOW_CLAMP":      {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 3000},
		"large SO_RCVBUF":       {unix.SOL_SOCKET, unix.SO_RCVBUF, 1 << 20},
		"TCP_USER_TIMEOUT":      {unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 5000},
		"SO_TIMESTAMPING et al": {unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1},
	} {
		t.Run(name, func(t *testing.T) {
			entry := r.entryListener(t, at(r.vip4, 80))
			defer entry.Close()
			server := r.listen(t, "0.0.0.0:80", o)
			for _, n := range []int{100, 64 << 10} {
				client, s := r.snapshot(t, entry, ramp(t, 0, n), false)
				done := make(chan error, 1)
				go func() { done <- in.Inject(s) }()
				c := accept(t, server)
				expect(t, "request", c, 0, n)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				send(t, "reply", c, 3, 50_000)
				expect(t, "reply", client, 3, 50_000)
				undisturbed(t, client)
			}
			_ = server.Close()
		})
	}
}

// The kernel takes the first RTT from the segment; without it the timeout for the first reply would be 3 s.
func TestRoundTripTime(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80")
	_, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	s.Advice.RTT = 80 * time.Millisecond
	if err := in.Inject(s); err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	control(t, accept(t, l), func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	})
	// Taking and injecting takes time as well.
	if rtt := time.Duration(info.Rtt) * time.Microsecond; rtt < 80*time.Millisecond || rtt > 150*time.Millisecond {
		t.Errorf("RTT %v, want 80 ms", rtt)
	}
	if rto := time.Duration(info.Rto) * time.Microsecond; rto > 600*time.Millisecond {
		t.Errorf("retransmission timeout %v", rto)
	}
}

// The client's next connection with the same port does not wait for the TIME_WAIT of the last.
func TestYoungerThanTimeWait(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families()[:2] {
		t.Run(f.name, func(t *testing.T) {
			entry := r.entryListener(t, at(f.vip, 80))
			server := r.listen(t, f.listen)
			client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
			if err := in.Inject(s); err != nil {
				t.Fatal(err)
			}
			c := accept(t, server)
			converse(t, client, c, 100)
			_ = c.Close()
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			_ = client.Close()
			eventually(t, "TIME_WAIT", func() bool { return r.state(t, in, s) == timeWait })
			younger := *s
			younger.ReceiveSeq += 1 << 20
			if err := in.Inject(&younger); err != nil {
				t.Fatal(err)
			}
			expect(t, "request", accept(t, server), 0, 100)
		})
	}
}

// A server that ends the connection as soon as it sees it has still been given it: Inject must not say that it was not made.
func TestServerClosesAtOnce(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80")
	go func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}()
	for range 50 {
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		_ = client.SetReadDeadline(time.Now().Add(patience))
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Fatalf("client: %v; want the server's reset", err)
		}
	}
}

// Fact 17: not only the first request of a connection.
func TestMidConnection(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families()[:3] {
		entry := r.entryListener(t, at(f.vip, 80))
		server := r.listen(t, f.listen)
		r.path(t, r.entryMAC)
		p := r.peek(t, entry, ramp(t, 0, 3000), false)
		expect(t, "first request", p.entry, 0, 3000)
		send(t, "first reply", p.entry, 0, 40_000)
		expect(t, "first reply", p.client, 0, 40_000)
		send(t, "second request", p.client, 0, 2000)
		eventually(t, "the entry has the second request", func() bool {
			return queued(t, p.entry) == 2000 && queuedOut(t, p.client) == 0 && queuedOut(t, p.entry) == 0
		})
		r.path(t, r.serverMAC)
		if err := in.Inject(r.take(t, p)); err != nil {
			t.Fatal(err)
		}
		converse(t, p.client, accept(t, server), 2000)
		_ = entry.Close()
		_ = server.Close()
	}
}

// The receive buffer of an injected connection grows as that of any other: a long upload never waits for a timeout. (Some of its segments are
// sent twice now and then on a machine of few CPUs, in direct connections too.)
func TestUpload(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	const size = 16 << 20
	for name, c := range map[string]struct {
		entry   []option
		rmem    string
		request int
	}{
		"as usual":           {nil, "4096 131072 33554432", 20_000},
		"large window":       {[]option{{unix.SOL_SOCKET, unix.SO_RCVBUF, 1 << 20}}, "4096 4194304 33554432", 60_000},
		"long request":       {nil, "4096 1048576 33554432", 60_000},
		"nothing but a byte": {nil, "4096 131072 33554432", 1},
	} {
		t.Run(name, func(t *testing.T) {
			r.sysctl(t, r.server, "net.ipv4.tcp_rmem", c.rmem)
			for _, f := range r.families()[:2] {
				entry := listenAt(t, r.entry, at(f.vip, 80).String(), false, c.entry...)
				server := r.listen(t, f.listen)
				client, s := r.snapshot(t, entry, ramp(t, 0, c.request), false)
				if err := in.Inject(s); err != nil {
					t.Fatal(err)
				}
				conn := accept(t, server)
				wrote := make(chan error, 1)
				rest := ramp(t, c.request, size-c.request)
				go func() {
					_, err := client.Write(rest)
					wrote <- err
				}()
				expect(t, "upload", conn, 0, size)
				if err := <-wrote; err != nil {
					t.Fatal(err)
				}
				if info, err := netnslab.ReadTCPInfo(client); err != nil || info.Timeouts != 0 {
					t.Errorf("client: %d timeouts, %v", info.Timeouts, err)
				}
				_ = entry.Close()
				_ = server.Close()
			}
		})
	}
}
