// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// ramp fills b with a sequence of period 251 that begins at offset at: lost, doubled and shifted bytes show.
func ramp(b []byte, at int) {
	for i := range b {
		b[i] = byte((at + i) % 251)
	}
}

// sink reads a ramp from a connection until it ends and returns its length.
func sink(c net.Conn) (int, error) {
	buf, want, n := make([]byte, 64<<10), make([]byte, 64<<10), 0
	for {
		k, err := c.Read(buf)
		ramp(want[:k], n)
		for i := range k {
			if buf[i] != want[i] {
				return n + i, fmt.Errorf("byte %d is %d, want %d", n+i, buf[i], want[i])
			}
		}
		n += k
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

type received struct {
	n   int
	err error
}

// accept serves one connection of l with sink.
func accept(l net.Listener) <-chan received {
	done := make(chan received, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- received{err: err}
			return
		}
		defer c.Close()
		n, err := sink(c)
		done <- received{n, err}
	}()
	return done
}

func wait(t testing.TB, done <-chan received, want int) {
	t.Helper()
	select {
	case r := <-done:
		if r.err != nil || r.n != want {
			t.Errorf("server received %d bytes, want %d: %v", r.n, want, r.err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the connection hangs")
	}
}

// upload sends a ramp until stop, and returns how much.
func upload(t testing.TB, c net.Conn, stop <-chan struct{}) <-chan int {
	t.Helper()
	done := make(chan int, 1)
	go func() {
		b, n := make([]byte, 32<<10), 0
		for {
			select {
			case <-stop:
				done <- n
				return
			default:
			}
			ramp(b, n)
			k, err := c.Write(b)
			n += k
			if err != nil {
				done <- n
				return
			}
		}
	}()
	return done
}

// A full-rate upload is held again and again; nothing may be lost, reordered or sent twice because of it.
func TestHoldReleaseUpload(t *testing.T) {
	for _, family := range []struct{ name, server string }{
		{"v4", "10.66.0.2:8080"},
		{"v6", "[fd66::2]:8080"},
	} {
		t.Run(family.name, func(t *testing.T) {
			hosts := network(t, 2)
			client, server := hosts[0], hosts[1]
			done := accept(server.listen(t, family.server))
			g := server.gated(t)
			c, err := client.dial(t, 0, family.server)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// At full rate a veth reorders by itself, when a sender changes its CPU.
			setInt(t, c, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 125_000_000)
			stop := make(chan struct{})
			sent := upload(t, c, stop)
			f := flowOf(c)
			var total Held
			var slow uint32
			for range 30 {
				began := time.Now()
				if err := g.Hold(f, Ingress, time.Second); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Millisecond)
				held, err := g.Release(f)
				if err != nil {
					t.Fatal(err)
				}
				// A client whose acknowledgement is late sends a tail loss probe (RFC 8985, 7.2), here after two ticks.
				if time.Since(began) > 6*time.Millisecond {
					slow++
				}
				total.Packets += held.Packets
				total.Bytes += held.Bytes
				total.Dropped += held.Dropped
				time.Sleep(2 * time.Millisecond)
			}
			close(stop)
			n := <-sent
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wait(t, done, n)
			info := tcpInfo(t, c)
			t.Logf("sent %d bytes; held %+v; slow rounds %d; client: retransmitted %d, reordering seen %d", n, total, slow, info.Total_retrans, info.Reord_seen)
			if total.Packets == 0 {
				t.Error("nothing was held: the test has not tested anything")
			}
			if total.Dropped != 0 {
				t.Errorf("%d held packets dropped", total.Dropped)
			}
			if info.Total_retrans > slow || info.Reord_seen != 0 {
				t.Errorf("client retransmitted %d segments, %d holds were long, reordering seen %d", info.Total_retrans, slow, info.Reord_seen)
			}
			if s := g.Stats(); s.NoTap != 0 || s.Overflow != 0 {
				t.Errorf("lost packets: %+v", s)
			}
		})
	}
}

// What is held does not reach the stack, and nothing leaves the host.
func TestHoldSilencesBothWays(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	g := server.gated(t)
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := flowOf(c)
	if err := g.Hold(f, Ingress|Egress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	before := tcpInfo(t, c).Segs_in
	msg := make([]byte, 1000)
	ramp(msg, 0)
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the segment is held", func() bool { return g.Stats().Held > 0 })
	// The client repeats it after its retransmission timeout, which shows that nobody answered.
	eventually(t, "a retransmission is held", func() bool { return g.Stats().Held > 1 })
	if after := tcpInfo(t, c).Segs_in; after != before {
		t.Errorf("client received %d segments during the hold", after-before)
	}
	r, err := g.Route(f)
	if err != nil || r.Hold != Ingress|Egress || r.Left <= 0 {
		t.Errorf("Route = %+v, %v", r, err)
	}
	if _, err := g.Release(f); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg))
}

// A server that sends into an egress hold keeps its data unsent, and its acknowledgements vanish without costing it
// congestion window.
func TestEgressHold(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	l := server.listen(t, "10.66.0.2:8080")
	g := server.gated(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	defer s.Close()
	f := flowOf(c)
	if err := g.Hold(f, Egress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	// The server acknowledges what it receives, in vain.
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an acknowledgement is suppressed", func() bool { return g.Stats().Suppressed > 0 })
	if info := tcpInfo(t, s); info.Ca_state != 0 {
		t.Errorf("swallowed acknowledgement put the server's congestion state to %d", info.Ca_state)
	}
	if _, err := s.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if info := tcpInfo(t, s); info.Notsent_bytes != 4 || info.Unacked != 0 {
		t.Errorf("server has %d bytes unsent and %d segments unacknowledged, want 4 and 0", info.Notsent_bytes, info.Unacked)
	}
	held, err := g.Release(f)
	if err != nil || held.Suppressed < 2 {
		t.Errorf("Release = %+v, %v", held, err)
	}
	b := make([]byte, 4)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "pong" {
		t.Errorf("read %q, %v", b, err)
	}
}

// A hold nobody ends goes by itself, in the kernel as in the process.
// TestSilenceAfterForward lets a host speak on a flow that it has given away, as its stack does when a packet finds the socket
// gone. The client hears nothing until the host takes the flow back.
func TestSilenceAfterForward(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	l := server.listen(t, "10.66.0.2:8080")
	g := server.gated(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := <-accepted
	defer s.Close()
	f := flowOf(c)
	if err := g.SetNode(3, server.index(t), client.mac(t), server.mac(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Forward(f, 3, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("stale")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host's packet is suppressed", func() bool { return g.Stats().Suppressed > 0 })
	if _, err := g.Release(f); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "stale" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestHoldLapses(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	g := server.gated(t)
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := flowOf(c)
	if err := g.Hold(f, Ingress|Egress, 60*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 100_000)
	ramp(msg, 0)
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg))
	s := g.Stats()
	if s.Held == 0 || s.Lapsed != 1 {
		t.Errorf("held %d packets, %d holds lapsed", s.Held, s.Lapsed)
	}
	if n := tcpInfo(t, c).Total_retrans; n != 0 {
		t.Errorf("what was held is lost: client retransmitted %d", n)
	}
}

func TestHoldBounds(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	g, err := server.open(t, Config{Interfaces: []string{"eth0"}, HoldPackets: 5})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := flowOf(c)
	if err := g.Hold(f, Ingress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 14_000) // ten segments: the initial window
	ramp(msg, 0)
	if _, err := c.Write(msg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packets are held", func() bool { return g.Stats().Held > 0 })
	held, err := g.Release(f)
	if err != nil {
		t.Fatal(err)
	}
	if held.Packets != 5 || held.Dropped != 5 {
		t.Errorf("Release = %+v, want 5 kept and 5 dropped", held)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg)) // the client's retransmission heals it
}

// Take and Replay: what one host held, another delivers, before what itself held.
func TestTakeReplay(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	g := server.gated(t)
	c, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := flowOf(c)
	if err := g.Hold(f, Ingress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, 14_000)
	ramp(msg, 0)
	if _, err := c.Write(msg[:8000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "packets are held", func() bool { return g.Stats().Held > 0 })
	frames, err := g.Take(f)
	if err != nil || len(frames) == 0 {
		t.Fatalf("Take = %d frames, %v", len(frames), err)
	}
	if _, err := c.Write(msg[8000:]); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	other := tcprepair.NewFlow(f.Local, f.Local)
	if err := g.Replay(other, frames); !errors.Is(err, ErrFrame) {
		t.Errorf("Replay of another flow's frames: %v", err)
	}
	if err := g.Replay(f, frames); err != nil {
		t.Fatal(err)
	}
	held, err := g.Release(f)
	if err != nil || held.Packets <= len(frames) || held.Dropped != 0 {
		t.Errorf("Release = %+v, %v", held, err)
	}
	wait(t, done, len(msg))
	if n := tcpInfo(t, c).Total_retrans; n != 0 {
		t.Errorf("client retransmitted %d", n)
	}
}

// TestHoldTotal: what is kept of two flows together is bounded; what is dropped comes again, and the room is there again afterwards.
func TestHoldTotal(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	listener := server.listen(t, "10.66.0.2:8080")
	const room = 20_000
	g, err := server.open(t, Config{Interfaces: []string{"eth0"}, HoldTotal: room})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- g.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	msg := make([]byte, 14_000) // ten segments: the initial window
	ramp(msg, 0)
	var (
		conns []net.Conn
		ends  []<-chan received
	)
	for range 2 {
		ends = append(ends, accept(listener))
		c, err := client.dial(t, 0, "10.66.0.2:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
		if err := g.Hold(flowOf(c), Ingress, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "there is no room", func() bool { return g.Stats().Crowded > 0 })
	dropped := 0
	for _, c := range conns {
		held, err := g.Release(flowOf(c))
		if err != nil {
			t.Fatal(err)
		}
		if dropped += held.Dropped; held.Bytes > room {
			t.Errorf("%+v of one flow", held)
		}
	}
	if s := g.Stats(); dropped == 0 || s.Crowded != s.Overflow || s.Crowded < uint64(dropped) || s.Kept != 0 {
		t.Errorf("%d packets dropped: %+v", dropped, s)
	}
	for _, c := range conns { // all of them first: which of them ends[0] has accepted is not certain
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	for _, end := range ends {
		wait(t, end, len(msg)) // the clients' retransmission heals it
	}
}
