// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
				if m, err := c.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("after the request: %d bytes, %v; want the end", m, err)
				}
				send(t, "reply", c, 5, 100_000)
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				expect(t, "reply", client, 5, 100_000)
				if m, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Fatalf("after the reply: %d bytes, %v; want the end", m, err)
				}
				undisturbed(t, client)
			})
		}
		_ = entry.Close()
		_ = server.Close()
	}
}

// refused checks that an injection fails as it should, leaves no socket and says nothing to the client, and that the connection
// can still be delivered to another listener.
func (r *rig) refused(t *testing.T, in *Injector, client *net.TCPConn, s *tcprepair.Snapshot, want error) {
	t.Helper()
	err := in.Inject(s)
	if !errors.Is(err, want) {
		t.Fatalf("Inject: %v; want %v", err, want)
	}
	var op *OpError
	if !errors.As(err, &op) || op.Flow != s.Flow {
		t.Errorf("%#v is no OpError of the flow", err)
	}
	r.intact(t, in, client, s)
}

// intact checks that the connection can be delivered to another listener.
func (r *rig) intact(t *testing.T, in *Injector, client *net.TCPConn, s *tcprepair.Snapshot) {
	t.Helper()
	if n := r.sockets(t, in, s); n != 0 {
		t.Errorf("%d sockets left", n)
	}
	for _, key := range []string{"net.ipv4.tcp_window_scaling", "net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps", "net.ipv4.tcp_syncookies"} {
		r.sysctl(t, r.server, key, "1")
	}
	other := r.listen(t, s.Flow.Local.String())
	defer other.Close()
	if err := in.Inject(s); err != nil {
		t.Fatalf("the second delivery: %v", err)
	}
	converse(t, client, accept(t, other), len(s.Received))
}

func TestNoListener(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		r.refused(t, in, client, s, ErrNoListener)
	}
}

func TestBacklog(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	// A backlog of 0 means one connection.
	r.sysctl(t, r.server, "net.core.somaxconn", "0")
	for _, f := range r.families()[:2] {
		t.Run(f.name, func(t *testing.T) {
			entry := r.entryListener(t, at(f.vip, 80))
			server := r.listen(t, f.listen)
			first, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
			if err := in.Inject(s); err != nil {
				t.Fatal(err)
			}
			client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
			if err := in.Inject(s); !errors.Is(err, ErrBacklog) {
				t.Fatalf("Inject: %v; want ErrBacklog", err)
			}
			if n := r.sockets(t, in, s); n != 0 {
				t.Errorf("%d sockets left", n)
			}
			converse(t, first, accept(t, server), 100)
			if err := in.Inject(s); err != nil {
				t.Fatalf("with room again: %v", err)
			}
			converse(t, client, accept(t, server), 100)
		})
	}
}

func TestExists(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80")
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	if err := in.Inject(s); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := in.Inject(s); !errors.Is(err, ErrExists) {
			t.Errorf("twice: %v", err)
		}
	}
	c := accept(t, server)
	converse(t, client, c, 100)
	if err := in.Inject(s); !errors.Is(err, ErrExists) {
		t.Errorf("twice: %v", err)
	}
	// The server closes first, so that its host keeps the connection in TIME_WAIT.
	_ = c.Close()
	if _, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	_ = client.Close()
	eventually(t, "TIME_WAIT", func() bool { return r.state(t, in, s) == timeWait })
	if err := in.Inject(s); !errors.Is(err, ErrExists) {
		t.Errorf("after its end: %v", err)
	}
	if r.state(t, in, s) != timeWait {
		t.Error("TIME_WAIT was ended by a connection that is not younger")
	}
}

func (r *rig) state(t testing.TB, in *Injector, s *tcprepair.Snapshot) uint32 {
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
	return a.state
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
			if _, err := client.Read(make([]byte, 1)); err != io.EOF {
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

func TestMPTCPListener(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := listenAt(t, r.server, "0.0.0.0:80", true)
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	if err := in.Inject(s); !errors.Is(err, ErrMPTCP) {
		t.Fatalf("Inject: %v; want ErrMPTCP", err)
	}
	_ = l.Close()
	r.intact(t, in, client, s)
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

func TestSyncookies(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80")
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	r.sysctl(t, r.server, "net.ipv4.tcp_syncookies", "0")
	if err := in.Inject(s); !errors.Is(err, ErrSyncookies) {
		t.Fatalf("Inject: %v; want ErrSyncookies", err)
	}
	if _, err := r.tryOpen(Config{}); !errors.Is(err, ErrSyncookies) {
		t.Errorf("Open: %v; want ErrSyncookies", err)
	}
	_ = l.Close()
	r.intact(t, in, client, s)
}

func TestServerSysctls(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	for _, key := range []string{"net.ipv4.tcp_window_scaling", "net.ipv4.tcp_sack", "net.ipv4.tcp_timestamps"} {
		t.Run(key, func(t *testing.T) {
			l := r.listen(t, "0.0.0.0:80")
			client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
			r.sysctl(t, r.server, key, "0")
			if err := in.Inject(s); !errors.Is(err, ErrOption) {
				t.Fatalf("Inject: %v; want ErrOption", err)
			}
			_ = l.Close()
			r.intact(t, in, client, s)
		})
	}
}

func TestReversePath(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80")
	for _, mode := range []string{"0", "2"} {
		r.sysctl(t, r.server, "net.ipv4.conf.all.rp_filter", mode)
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		if err := in.Inject(s); err != nil {
			t.Fatalf("rp_filter %s: %v", mode, err)
		}
		converse(t, client, accept(t, l), 100)
	}
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	r.sysctl(t, r.server, "net.ipv4.conf.all.rp_filter", "1")
	if err := in.Inject(s); !errors.Is(err, ErrReversePath) {
		t.Fatalf("Inject: %v; want ErrReversePath", err)
	}
	if _, err := r.tryOpen(Config{}); !errors.Is(err, ErrReversePath) {
		t.Errorf("Open: %v; want ErrReversePath", err)
	}
	r.sysctl(t, r.server, "net.ipv4.conf.all.rp_filter", "0")
	_ = l.Close()
	r.intact(t, in, client, s)
}

// A request that the server does not read, and that its buffer cannot hold.
func TestPartial(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{Patience: 100 * time.Millisecond})
	for _, f := range r.families()[:2] {
		t.Run(f.name, func(t *testing.T) {
			entry := r.entryListener(t, at(f.vip, 80))
			l := r.listen(t, f.listen, option{unix.SOL_SOCKET, unix.SO_RCVBUF, 4096})
			client, s := r.snapshot(t, entry, ramp(t, 0, 64<<10), false)
			if err := in.Inject(s); !errors.Is(err, ErrPartial) || errors.Is(err, ErrReset) {
				t.Fatalf("Inject: %v; want ErrPartial", err)
			}
			c := accept(t, l)
			if n, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the server reads %d bytes, %v; want a reset", n, err)
			}
			_ = l.Close()
			r.intact(t, in, client, s)
		})
	}
}

// The same, but the server has answered: the client must know that it is over.
func TestPartialAnswered(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{Patience: 300 * time.Millisecond})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80", option{unix.SOL_SOCKET, unix.SO_RCVBUF, 4096})
	client, s := r.snapshot(t, entry, ramp(t, 0, 64<<10), false)
	done := make(chan error, 1)
	go func() { done <- in.Inject(s) }()
	c := accept(t, l)
	send(t, "early answer", c, 0, 10)
	if err := <-done; !errors.Is(err, ErrReset) || !errors.Is(err, ErrPartial) {
		t.Fatalf("Inject: %v; want ErrReset", err)
	}
	expect(t, "early answer", client, 0, 10)
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("client: %v; want a reset", err)
	}
	if n := r.sockets(t, in, s); n != 0 {
		t.Errorf("%d sockets left", n)
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

func TestMissingAddress(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, to := range []string{"10.77.9.9", "fd77::99"} {
		for _, forwarding := range []string{"0", "1"} {
			r.sysctl(t, r.server, "net.ipv4.ip_forward", forwarding)
			r.sysctl(t, r.server, "net.ipv6.conf.all.forwarding", forwarding)
			l := r.listen(t, "[::]:80")
			s := &tcprepair.Snapshot{
				Flow:  tcprepair.NewFlow(at(netip.MustParseAddr(to), 80), at(r.client.Addr6(), 4000)),
				State: tcprepair.Established, Negotiated: tcprepair.Negotiated{MSS: 1460}, SendSeq: 1, ReceiveSeq: 1,
			}
			if s.Flow.Local.Addr().Is4() {
				s.Flow.Remote = at(r.client.Addr4(), 4000)
			}
			if err := in.Inject(s); !errors.Is(err, ErrAddress) {
				t.Errorf("%s, forwarding %s: %v; want ErrAddress", to, forwarding, err)
			}
			_ = l.Close()
		}
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
