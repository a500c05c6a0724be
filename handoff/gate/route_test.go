// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

// cluster is a client, an entry and servers that say who they are.
type cluster struct {
	client, entry *host
	servers       []*host
	gate          *Gate // of the entry
}

func newCluster(t testing.TB, servers int) *cluster {
	t.Helper()
	hosts := network(t, 2+servers)
	c := &cluster{client: hosts[0], entry: hosts[1], servers: hosts[2:]}
	withVIP(t, hosts[1:]...)
	for _, vip := range []string{vip4, vip6} {
		c.client.neighbour(t, vip, c.entry.mac(t))
	}
	c.gate = c.entry.gated(t)
	for i, s := range c.servers {
		if err := c.gate.SetNode(Node(i+1), c.entry.index(t), s.mac(t), c.entry.mac(t)); err != nil {
			t.Fatal(err)
		}
		for _, vip := range []string{vip4, vip6} {
			l := s.listen(t, net.JoinHostPort(vip, "80"))
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						_, _ = fmt.Fprintf(conn, "%d", i+1)
						_, _ = io.Copy(io.Discard, conn)
						_ = conn.Close()
					}()
				}
			}()
		}
	}
	return c
}

// who tells which server a connection has reached.
func who(t testing.TB, c net.Conn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatalf("no server answers: %v", err)
	}
	return string(b[:])
}

func TestEntryRoundRobin(t *testing.T) {
	c := newCluster(t, 3)
	for _, vip := range []string{vip4, vip6} {
		at := netip.MustParseAddrPort(net.JoinHostPort(vip, "80"))
		if err := c.gate.SetService(at, []Node{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		connect := func(n int) string {
			var order strings.Builder
			for range n {
				conn, err := c.client.dial(t, 0, at.String())
				if err != nil {
					t.Fatal(err)
				}
				order.WriteString(who(t, conn))
				r, err := c.gate.Route(flowOf(conn))
				if err != nil || r.Epoch != 1 || r.Forwarded < 2 {
					t.Errorf("Route = %+v, %v", r, err)
				}
				_ = conn.Close()
			}
			return order.String()
		}
		if got := connect(6); got != "123123" {
			t.Errorf("%s: servers chosen %s, want 123123", vip, got)
		}
		if err := c.gate.DrainNode(2, true); err != nil {
			t.Fatal(err)
		}
		if got := connect(4); strings.Contains(got, "2") || !strings.Contains(got, "1") || !strings.Contains(got, "3") {
			t.Errorf("%s: node 2 is drained, chosen %s", vip, got)
		}
		if err := c.gate.DrainNode(2, false); err != nil {
			t.Fatal(err)
		}
		if err := c.gate.SetService(at, []Node{2}); err != nil {
			t.Fatal(err)
		}
		if got := connect(3); got != "222" {
			t.Errorf("%s: list replaced by 2, chosen %s", vip, got)
		}
	}
}

// The next connection from the same port is a new flow: epoch 1, any server.
func TestPortReuseDecidesAnew(t *testing.T) {
	c := newCluster(t, 2)
	at := netip.MustParseAddrPort(vip4 + ":80")
	if err := c.gate.SetService(at, []Node{1, 2}); err != nil {
		t.Fatal(err)
	}
	var got string
	for range 2 {
		conn, err := c.client.dial(t, 40123, at.String())
		if err != nil {
			t.Fatal(err)
		}
		got += who(t, conn)
		f := flowOf(conn)
		if r, err := c.gate.Route(f); err != nil || r.Epoch != 1 {
			t.Errorf("Route = %+v, %v", r, err)
		}
		if _, err := c.gate.Commit(f, 1, 1); err != nil {
			t.Fatal(err)
		}
		// RST instead of TIME_WAIT frees the port.
		if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	if got != "12" {
		t.Errorf("servers %s, want 12", got)
	}
}

// A server that is gone stays the flow's server for the SYN's retransmissions, and one that comes back gets them.
func TestSYNRetransmissionKeepsServer(t *testing.T) {
	c := newCluster(t, 2)
	at := netip.MustParseAddrPort(vip4 + ":80")
	if err := c.gate.SetService(at, []Node{1, 2}); err != nil {
		t.Fatal(err)
	}
	l, err := c.servers[0].nl.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.servers[0].nl.LinkSetDown(l); err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 1)
	go func() {
		conn, _ := c.client.dial(t, 40124, at.String())
		conns <- conn
	}()
	f := tcprepair.NewFlow(at, netip.MustParseAddrPort("10.66.0.1:40124"))
	eventually(t, "a retransmitted SYN is forwarded", func() bool {
		r, err := c.gate.Route(f)
		return err == nil && r.Forwarded >= 2
	})
	if r, _ := c.gate.Route(f); r.Node != 1 {
		t.Errorf("node %d after a retransmission, want 1", r.Node)
	}
	if s := c.gate.Stats(); s.Assigned != 1 {
		t.Errorf("%d assignments, want 1", s.Assigned)
	}
	if err := c.servers[0].nl.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	c.servers[0].address(t, "eth0", "fd66::3/64")
	select {
	case conn := <-conns:
		if conn == nil {
			t.Fatal("dial failed")
		}
		defer conn.Close()
		if got := who(t, conn); got != "1" {
			t.Errorf("server %s, want 1", got)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the connection hangs")
	}
}

// Forward: what the source held and what comes later both reach the other host.
func TestForward(t *testing.T) {
	hosts := network(t, 3)
	client, source, target := hosts[0], hosts[1], hosts[2]
	withVIP(t, source, target)
	client.neighbour(t, vip4, source.mac(t))
	done := accept(target.listen(t, vip4+":80"))
	atSource, atTarget := source.gated(t), target.gated(t)
	if err := atSource.SetNode(7, source.index(t), target.mac(t), source.mac(t)); err != nil {
		t.Fatal(err)
	}
	// The client's SYN is held at the source and delivered at the target: a whole connection moves before it begins.
	f := tcprepair.NewFlow(netip.MustParseAddrPort(vip4+":80"), netip.MustParseAddrPort("10.66.0.1:40125"))
	if err := atSource.Hold(f, Ingress|Egress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 1)
	go func() {
		conn, _ := client.dial(t, 40125, vip4+":80")
		conns <- conn
	}()
	eventually(t, "the SYN is held", func() bool { return atSource.Stats().Held > 0 })
	frames, err := atSource.Forward(f, 7, 20*time.Second)
	if err != nil || len(frames) == 0 {
		t.Fatalf("Forward = %d frames, %v", len(frames), err)
	}
	if err := atTarget.Replay(f, frames); err != nil {
		t.Fatal(err)
	}
	conn := <-conns
	if conn == nil {
		t.Fatal("dial failed")
	}
	defer conn.Close()
	setInt(t, conn, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, 125_000_000)
	msg := make([]byte, 300_000)
	ramp(msg, 0)
	if _, err := conn.Write(msg); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg))
	if s := atSource.Stats(); s.Forwarded == 0 {
		t.Error("nothing was forwarded")
	}
	if n := tcpInfo(t, conn).Total_retrans; n != 0 {
		t.Errorf("client retransmitted %d", n)
	}
}

// However many ask at once, one gets the flow.
func TestCommitRace(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	f := tcprepair.NewFlow(netip.MustParseAddrPort("[fd66::1]:80"), netip.MustParseAddrPort("[fd66::2]:1000"))
	if _, err := g.Commit(f, 1, 1); !errors.Is(err, ErrNoFlow) {
		t.Errorf("Commit of an unknown flow: %v", err)
	}
	if r, err := g.Adopt(f, 1, 1); err != nil || r.Epoch != 1 || r.Node != 1 {
		t.Fatalf("Adopt = %+v, %v", r, err)
	}
	if r, err := g.Adopt(f, 5, 2); !errors.Is(err, ErrExists) || r.Epoch != 1 || r.Node != 1 {
		t.Errorf("second Adopt = %+v, %v", r, err)
	}
	for epoch := uint32(1); epoch < 200; epoch++ {
		var wg sync.WaitGroup
		winners := make(chan Node, 8)
		for n := range Node(8) {
			wg.Go(func() {
				r, err := g.Commit(f, epoch, n)
				switch {
				case err == nil && r.Epoch == epoch+1 && r.Node == n:
					winners <- n
				case errors.Is(err, ErrEpoch) && r.Epoch == epoch+1:
				default:
					t.Errorf("Commit(%d, %d) = %+v, %v", epoch, n, r, err)
				}
			})
		}
		wg.Wait()
		close(winners)
		if len(winners) != 1 {
			t.Fatalf("epoch %d has %d owners", epoch, len(winners))
		}
		if r, err := g.Route(f); err != nil || r.Node != <-winners {
			t.Fatalf("Route = %+v, %v: not the winner", r, err)
		}
	}
}

func TestCommitAll(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	flow := func(i int) tcprepair.Flow {
		return tcprepair.NewFlow(netip.MustParseAddrPort("10.0.0.1:80"), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), uint16(1000+i)))
	}
	var changes []Change
	for i := range 150 { // three batches
		if i%10 != 0 {
			if _, err := g.Adopt(flow(i), uint32(i), 1); err != nil {
				t.Fatal(err)
			}
		}
		changes = append(changes, Change{Flow: flow(i), From: uint32(i - i%10%2), Owner: 2})
	}
	for i, got := range g.CommitAll(changes...) {
		switch {
		case i%10 == 0:
			if !errors.Is(got.Err, ErrNoFlow) {
				t.Errorf("%d: %v, want ErrNoFlow", i, got.Err)
			}
		case i%10%2 == 1:
			if !errors.Is(got.Err, ErrEpoch) || got.Route.Epoch != uint32(i) || got.Route.Node != 1 {
				t.Errorf("%d: %+v, want ErrEpoch", i, got)
			}
		default:
			if got.Err != nil || got.Route.Epoch != uint32(i+1) || got.Route.Node != 2 {
				t.Errorf("%d: %+v", i, got)
			}
		}
	}
}

// The states of one flow, one operation after the other.
func TestRouteStates(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	f := tcprepair.NewFlow(netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:1000"))
	steps := []struct {
		name string
		do   func() error
		err  error
		want RouteInfo
		none bool
	}{
		{"unknown", func() error { return nil }, nil, RouteInfo{}, true},
		{"release unknown", func() error { _, err := g.Release(f); return err }, ErrNoFlow, RouteInfo{}, true},
		{"hold", func() error { return g.Hold(f, Ingress, time.Minute) }, nil, RouteInfo{Hold: Ingress}, false},
		{"widen", func() error { return g.Hold(f, Egress, time.Minute) }, nil, RouteInfo{Hold: Ingress | Egress}, false},
		{"forward", func() error { _, err := g.Forward(f, 3, time.Minute); return err }, nil, RouteInfo{Node: 3}, false},
		{"commit a stray", func() error { _, err := g.Commit(f, 0, 2); return err }, ErrNoFlow, RouteInfo{Node: 3}, false},
		{"hold again", func() error { return g.Hold(f, Ingress, time.Minute) }, nil, RouteInfo{Node: 3, Hold: Ingress}, false},
		{"unhold", func() error { return g.Unhold(f) }, nil, RouteInfo{Node: 3}, false},
		{"hold once more", func() error { return g.Hold(f, Ingress, time.Minute) }, nil, RouteInfo{Node: 3, Hold: Ingress}, false},
		{"release serves here", func() error { _, err := g.Release(f); return err }, nil, RouteInfo{}, false},
		{"forward anew", func() error { _, err := g.Forward(f, 3, time.Minute); return err }, nil, RouteInfo{Node: 3}, false},
		{"serve", func() error { return g.Serve(f, time.Minute) }, nil, RouteInfo{Hold: Ingress}, false},
		{"release what is served", func() error { _, err := g.Release(f); return err }, nil, RouteInfo{}, false},
		{"adopt", func() error { _, err := g.Adopt(f, 4, 5); return err }, nil, RouteInfo{Node: 5, Epoch: 4}, false},
		{"entry's record stands", func() error { _, err := g.Forward(f, 3, time.Minute); return err }, nil, RouteInfo{Node: 5, Epoch: 4}, false},
		{"entry's record stands although served", func() error { return g.Serve(f, time.Minute) }, nil, RouteInfo{Node: 5, Epoch: 4, Hold: Ingress}, false},
		{"yield at the entry", func() error { return g.Yield(f) }, nil, RouteInfo{Node: 5, Epoch: 4}, false},
		{"hold at the entry", func() error { return g.Hold(f, Ingress, time.Minute) }, nil, RouteInfo{Node: 5, Epoch: 4, Hold: Ingress}, false},
		{"unhold at the entry", func() error { return g.Unhold(f) }, nil, RouteInfo{Node: 5, Epoch: 4}, false},
		{"commit to itself", func() error { _, err := g.Commit(f, 4, 0); return err }, nil, RouteInfo{Epoch: 5}, false},
		{"commit late", func() error { _, err := g.Commit(f, 4, 9); return err }, ErrEpoch, RouteInfo{Epoch: 5}, false},
		{"forget", func() error { return g.Forget(f) }, nil, RouteInfo{}, true},
		{"forget again", func() error { return g.Forget(f) }, nil, RouteInfo{}, true},
		{"commit forgotten", func() error { _, err := g.Commit(f, 5, 1); return err }, ErrNoFlow, RouteInfo{}, true},
		{"hold forgotten", func() error { return g.Hold(f, Ingress, time.Minute) }, nil, RouteInfo{Hold: Ingress}, false},
		{"adopt while held", func() error { _, err := g.Adopt(f, 1, 1); return err }, nil, RouteInfo{Node: 1, Epoch: 1, Hold: Ingress}, false},
	}
	for _, s := range steps {
		if err := s.do(); !errors.Is(err, s.err) {
			t.Errorf("%s: %v, want %v", s.name, err, s.err)
		}
		got, err := g.Route(f)
		if s.none != errors.Is(err, ErrNoFlow) {
			t.Errorf("%s: Route: %v", s.name, err)
		}
		if (got.Left > 0) != (got.Hold != 0) {
			t.Errorf("%s: hold %d with %v left", s.name, got.Hold, got.Left)
		}
		got.Left, got.Idle = 0, 0
		if d := cmp.Diff(s.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", s.name, d)
		}
	}
}

// Deletion takes two sweeps, and spares what is alive.
func TestSweep(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	flow := func(i uint16) tcprepair.Flow {
		return tcprepair.NewFlow(netip.MustParseAddrPort("10.0.0.1:80"), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), i))
	}
	held, stray, owned, expired := flow(1), flow(2), flow(3), flow(4)
	fail := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fail(nil, g.Hold(held, Ingress, time.Minute))
	fail(g.Forward(stray, 1, time.Minute))
	fail(g.Adopt(owned, 1, 1))
	fail(g.Forward(expired, 1, time.Nanosecond))
	sweep := func(idle time.Duration) gateSweep {
		t.Helper()
		s, err := g.table.sweep(idle, idle)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := sweep(time.Hour); s.Live != 3 || s.Deleted != 0 || s.Holds != 1 {
		t.Errorf("first sweep %+v", s)
	}
	if s := sweep(time.Hour); s.Live != 3 || s.Deleted != 1 {
		t.Errorf("second sweep %+v", s)
	}
	if s := sweep(time.Nanosecond); s.Live != 2 {
		t.Errorf("sweep with no idle time %+v", s)
	}
	if s := sweep(time.Nanosecond); s.Live != 2 || s.Deleted != 1 {
		t.Errorf("and once more %+v", s)
	}
	if _, err := g.Route(owned); !errors.Is(err, ErrNoFlow) {
		t.Errorf("idle flow: %v", err)
	}
}

func TestTableFull(t *testing.T) {
	h := network(t, 1)[0]
	g, err := h.open(t, Config{Interfaces: []string{"eth0"}, MaxFlows: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var failed error
	for i := range uint16(64) {
		f := tcprepair.NewFlow(netip.MustParseAddrPort("10.0.0.1:80"), netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), 1000+i))
		if failed = g.Hold(f, Ingress, time.Minute); failed != nil {
			break
		}
	}
	if !errors.Is(failed, ErrFull) {
		t.Errorf("Hold beyond MaxFlows: %v", failed)
	}
}

func TestArguments(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	f := tcprepair.NewFlow(netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:1000"))
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, err := range map[string]error{
		"hold nothing":       g.Hold(f, 0, time.Second),
		"hold for no time":   g.Hold(f, Ingress, 0),
		"hold no flow":       g.Hold(tcprepair.Flow{}, Ingress, time.Second),
		"node 0":             g.SetNode(0, 1, mac, mac),
		"node too large":     g.SetNode(MaxNodes, 1, mac, mac),
		"short MAC":          g.SetNode(1, 1, mac[:5], mac),
		"service on no port": g.SetService(netip.MustParseAddrPort("10.0.0.1:0"), nil),
		"too many nodes":     g.SetService(netip.MustParseAddrPort("10.0.0.1:1"), make([]Node, MaxServiceNodes+1)),
		"service of no node": g.SetService(netip.MustParseAddrPort("10.0.0.1:1"), []Node{MaxNodes}),
	} {
		var op *OpError
		if !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.Forward(f, 0, time.Second); err == nil {
		t.Error("Forward to this host succeeded")
	}
	if _, err := g.Adopt(f, 0, 1); err == nil {
		t.Error("Adopt at epoch 0 succeeded")
	}
}
