// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/tcprepair"
)

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
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
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

// A first segment that the new socket would not take leaves, on some kernels, one that nobody is told of. So the program asks for less.
func TestFirstWindow(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		_, s := r.snapshot(t, entry, ramp(t, 0, 60_000), false)
		for _, c := range []struct {
			set      option
			low, top uint32
			want     reqskResult
		}{
			{option{unix.SOL_SOCKET, unix.SO_RCVBUF, 4096}, 1000, 8192, reqskResultRESULT_WINDOW},
			{option{unix.SOL_SOCKET, unix.SO_RCVBUF, 40_000}, 10_000, 60_000, reqskResultRESULT_WINDOW},
			{option{unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 5000}, 1000, 5000, reqskResultRESULT_WINDOW},
			{option{unix.SOL_SOCKET, unix.SO_RCVBUF, 100_000}, 60_000, 200_000, reqskResultRESULT_PASSED},
		} {
			server := r.listen(t, f.listen, c.set)
			st, err := newStream(s)
			if err != nil {
				t.Fatal(err)
			}
			l := <-in.lanes
			l.set(st)
			a, err := l.send(st, reqskOpOP_INJECT, st.segment(0, len(st.data)))
			in.lanes <- l
			if err != nil || a.result != c.want || a.window < c.low || a.window > c.top {
				t.Errorf("%+v: %+v, %v", c, a, err)
			}
			if made := a.result == reqskResultRESULT_PASSED; made != (r.sockets(t, in, s) == 1) {
				t.Errorf("%+v: %d sockets", c, r.sockets(t, in, s))
			}
			_ = server.Close()
		}
	}
}

// As TestPartial, but the server has answered: the client must know that it is over.
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

func TestMissingAddress(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for _, to := range []string{"10.77.0.99", "fd77::99"} {
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
			if err := r.server.SetNeighbor(s.Flow.Local.Addr(), r.entryMAC); err != nil {
				t.Fatal(err)
			}
			wire, err := r.server.Capture(netnslab.CaptureConfig{})
			if err != nil {
				t.Fatal(err)
			}
			if err := in.Inject(s); !errors.Is(err, ErrAddress) {
				t.Errorf("%s, forwarding %s: %v; want ErrAddress", to, forwarding, err)
			}
			trace, err := wire.Close()
			if err != nil {
				t.Fatal(err)
			}
			if n := len(trace.Flow(s.Flow).Segments); n != 0 || trace.Missed != 0 {
				t.Errorf("%s, forwarding %s: %d segments have left the host (%d not seen)", to, forwarding, n, trace.Missed)
			}
			_ = l.Close()
		}
	}
}
