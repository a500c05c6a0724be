// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	both = gate.Ingress | gate.Egress
	long = time.Minute
)

// silence fails the test if something arrives.
func silence(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.DeadlineExceeded) && !isTimeout(err) {
		t.Fatalf("%d bytes, %v: want silence", n, err)
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// arrives reads as much as text has and compares; the sender may have to send it again.
func arrives(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		t.Fatalf("read %q, %v, want %q", got, err, text)
	}
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// What comes for a held flow is dropped and counted; another flow of the service goes on; after the release the client's kernel sends it again.
func TestHold(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	for i, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		other, there := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		for range 2 { // the second renews it
			if err := g.Hold(flow, gate.Ingress, long); err != nil {
				t.Fatal(err)
			}
		}
		write(t, client, "held")
		silence(t, server)
		exchange(t, other, there, "not held")
		if s := g.Stats(); s.Held == 0 || s.Holds != 1 {
			t.Errorf("%+v: want a packet held, and one hold", s)
		}
		end := g.Unhold
		if i == 0 {
			end = func(f tcprepair.Flow) error {
				_, err := g.Release(f)
				return err
			}
		}
		if err := end(flow); err != nil {
			t.Fatal(err)
		}
		arrives(t, server, "held")
		exchange(t, client, server, "as before")
		if err := g.Unhold(flow); !errors.Is(err, gate.ErrNoFlow) {
			t.Errorf("Unhold of what is not held: %v", err)
		}
	}
}

// At an entry a frozen socket keeps what comes, and the client does not hear of it; at a server it is dropped.
func TestHoldBoth(t *testing.T) {
	r := newRig(t)
	for _, server := range []bool{false, true} {
		g := r.open(t, Config{Server: server, Table: fmt.Sprintf("rehome-%v", server)})
		for _, vip := range r.vips {
			client, here := r.connect(t, vip, netip.AddrPort{})
			flow := flowOf(client)
			if err := g.Hold(flow, both, long); err != nil {
				t.Fatal(err)
			}
			write(t, client, "while frozen")
			if server {
				silence(t, here)
			} else {
				arrives(t, here, "while frozen")
			}
			if s := g.Stats(); s.Held == 0 && server || s.Suppressed == 0 && !server {
				t.Errorf("server %v: %+v", server, s)
			}
			if err := g.Unhold(flow); err != nil {
				t.Fatal(err)
			}
			if server {
				arrives(t, here, "while frozen")
			}
			exchange(t, client, here, "as before")
		}
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// The kernel ends a hold by itself, and one that is renewed later.
func TestHoldDeadline(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	const ttl = 300 * time.Millisecond
	begin := time.Now()
	if err := g.Hold(flow, gate.Ingress, ttl); err != nil {
		t.Fatal(err)
	}
	if err := g.Hold(flow, gate.Ingress, 2*ttl); err != nil {
		t.Fatal(err)
	}
	write(t, client, "waits")
	arrives(t, server, "waits")
	if took := time.Since(begin); took < 2*ttl {
		t.Errorf("it came after %v: the renewed hold is %v", took, 2*ttl)
	}
	// Run finds out, too.
	if err := g.tend(time.Now(), false); err != nil {
		t.Fatal(err)
	}
	if s := g.Stats(); s.Lapsed != 1 || s.Holds != 0 {
		t.Errorf("%+v: want one lapsed hold, and none now", s)
	}
	// What has lapsed can be ended all the same.
	if err := g.Hold(flow, gate.Ingress, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	write(t, client, "again")
	arrives(t, server, "again")
	if _, err := g.Release(flow); err != nil {
		t.Errorf("Release of a lapsed hold: %v", err)
	}
	exchange(t, client, server, "both ways")
}

// With Egress nothing that the host sends leaves, not even an acknowledgement; a hold gets a direction by holding again.
func TestMute(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Server: true})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		other, there := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		for i, d := range []gate.Direction{gate.Egress, gate.Ingress} {
			if err := g.Hold(flow, d, long); err != nil {
				t.Fatal(err)
			}
			before := g.Stats()
			write(t, server, "muted ")
			silence(t, client)
			exchange(t, other, there, "another flow")
			if after := g.Stats(); i == 0 && after.Suppressed <= before.Suppressed {
				t.Errorf("%+v, then %+v: want packets suppressed", before, after)
			}
			write(t, client, "held ")
			if i == 0 {
				arrives(t, server, "held ")
			} else {
				silence(t, server)
			}
		}
		if err := g.Unhold(flow); err != nil {
			t.Fatal(err)
		}
		arrives(t, client, "muted muted ")
		arrives(t, server, "held ")
		exchange(t, client, server, "both ways")
	}
}

// Flows that are not used are forgotten after IdleTimeout, and those that are used are not.
func TestIdle(t *testing.T) {
	r := newRig(t)
	const idle = 500 * time.Millisecond
	g := r.open(t, Config{IdleTimeout: idle})
	r.configure(t, g)
	var clients, servers []*net.TCPConn
	for _, vip := range r.vips {
		for range 2 {
			client, here := r.connect(t, vip, netip.AddrPort{})
			there := moved(t, here, r.servers[0], func() {
				if _, err := g.Commit(flowOf(client), 1, 1); err != nil {
					t.Error(err)
				}
			})
			clients, servers = append(clients, client), append(servers, there)
		}
	}
	for begin := time.Now(); time.Since(begin) < 2*idle; time.Sleep(idle / 10) {
		exchange(t, clients[0], servers[0], "in use")
		exchange(t, clients[2], servers[2], "in use")
	}
	// A flow that one list does not have may be there.
	for look, nodes := range [][]gate.Node{{1, 1, 1, 1}, {1, 0, 1, 0}} {
		if err := g.tend(time.Now(), true); err != nil {
			t.Fatal(err)
		}
		for i, want := range nodes {
			if got, err := g.Route(flowOf(clients[i])); err != nil || got.Node != want {
				t.Errorf("look %d: connection %d: %+v, %v, want node %d", look+1, i, got, err, want)
			}
		}
		exchange(t, clients[0], servers[0], "in use")
		exchange(t, clients[2], servers[2], "in use")
	}
	exchange(t, clients[0], servers[0], "still there")
}

// More than fits into one transaction.
func TestManyFlows(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Keep: true})
	r.configure(t, g)
	const n = 3*maxBatch + 1
	flows := make([]tcprepair.Flow, n)
	for i := range flows {
		vip := r.vips[i%2]
		from := netip.MustParseAddr("192.0.2.1")
		if vip.Addr().Is6() {
			from = netip.MustParseAddr("2001:db8::1")
		}
		flows[i] = tcprepair.NewFlow(vip, netip.AddrPortFrom(from, uint16(1024+i)))
		if _, err := g.Adopt(flows[i], 5, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.HoldAll(both, long, flows...); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = r.open(t, Config{})
	if s := g.Stats(); s.Flows != n || s.Holds != n {
		t.Errorf("%+v, want %d flows and holds", s, n)
	}
	if err := g.Forget(flows...); err != nil {
		t.Fatal(err)
	}
	if s := g.Stats(); s.Flows != 0 {
		t.Errorf("%d flows are left", s.Flows)
	}
}

func TestProbe(t *testing.T) {
	if f := Probe(); !f.OK || !f.Required || f.Detail != "" {
		t.Errorf("%+v", f)
	}
	// It leaves nothing, so it can be repeated.
	if f := Probe(); !f.OK {
		t.Errorf("%+v", f)
	}
}

func TestHoldErrors(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	check := func(when string, errs map[string]error) {
		for name, err := range errs {
			var op *OpError
			if !errors.As(err, &op) {
				t.Errorf("%s %s: %v", name, when, err)
			}
		}
	}
	check("with wrong arguments", map[string]error{
		"Hold nothing":  g.Hold(flow4(), 0, long),
		"Hold for ever": g.Hold(flow4(), both, 0),
		"Hold no flow":  g.Hold(tcprepair.Flow{}, both, long),
		"Shut":          g.Shut(r.vips[0], long),
	})
	if err := g.Shut(r.vips[0], long); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Shut: %v", err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	_, release := g.Release(flow4())
	_, forward := g.Forward(flow4(), 1, long)
	_, settle := g.Settle(flow4(), 1, 1)
	errs := map[string]error{
		"Hold": g.Hold(flow4(), both, long), "Serve": g.Serve(flow4(), long), "Yield": g.Yield(flow4()), "Release": release, "Forward": forward,
		"Settle": settle, "Divert": g.Divert(flow4(), 1, long), "Replay": g.Replay(flow4(), nil),
	}
	check("when closed", errs)
	for name, err := range errs {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s when closed: %v", name, err)
		}
	}
	if s := g.Stats(); s.Held != 0 {
		t.Errorf("%+v when closed", s)
	}
}

// Stats counts what comes in whole frames, whatever their size.
func TestCounts(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	there := moved(t, server, r.servers[0], func() {
		if _, err := g.Commit(flowOf(client), 1, 1); err != nil {
			t.Error(err)
		}
	})
	before := g.Stats().Forwarded
	text := string(bytes.Repeat([]byte("some "), 1000))
	exchange(t, client, there, text)
	if after := g.Stats().Forwarded; after <= before {
		t.Errorf("%d packets forwarded before, %d after", before, after)
	}
}
