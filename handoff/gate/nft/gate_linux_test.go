// SPDX-License-Identifier: Apache-2.0

//go:build linux

package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/tcprepair"
)

const port = 8080

// rig is a client, an entry that accepts connections, and two servers that have its addresses.
type rig struct {
	client, entry *netnslab.Host
	servers       []*netnslab.Host
	vips          []netip.AddrPort
	accepted      map[netip.AddrPort]net.Listener
}

func newRig(t *testing.T) *rig {
	t.Helper()
	topo := netnslab.Standard(2)
	lab := labtest.New(t, topo)
	r := &rig{
		client: labtest.Host(t, lab, "client"), entry: labtest.Host(t, lab, "entry"), accepted: make(map[netip.AddrPort]net.Listener),
		servers: []*netnslab.Host{labtest.Host(t, lab, "a"), labtest.Host(t, lab, "b")},
		vips:    []netip.AddrPort{netip.AddrPortFrom(topo.VIP4(), port), netip.AddrPortFrom(topo.VIP6(), port)},
	}
	for _, vip := range r.vips {
		l, err := r.entry.Listen(t.Context(), "tcp", vip.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		r.accepted[vip] = l
	}
	return r
}

func (r *rig) open(t *testing.T, c Config) *Gate {
	t.Helper()
	c.Interfaces = []string{netnslab.Interface}
	var f *Gate
	if err := r.entry.Do(func() (err error) {
		f, err = Open(c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// configure tells the gate the way to the servers, nodes 1 and 2.
func (r *rig) configure(t *testing.T, f *Gate) {
	t.Helper()
	own, err := r.entry.Link()
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range r.servers {
		l, err := s.Link()
		if err == nil {
			err = f.SetNode(gate.Node(i+1), own.Index, l.MAC, own.MAC)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, vip := range r.vips {
		if err := f.SetService(vip, []gate.Node{0}); err != nil {
			t.Fatal(err)
		}
	}
}

// connect makes a connection that the entry has accepted. local may name the client's end.
func (r *rig) connect(t *testing.T, vip, local netip.AddrPort) (client, server *net.TCPConn) {
	t.Helper()
	var c net.Conn
	if err := r.client.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second, Control: reuse}
		d.SetMultipathTCP(false)
		if local.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(local)
		}
		c, err = d.DialContext(context.Background(), "tcp", vip.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s, err := r.accepted[vip].Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func reuse(_, _ string, c syscall.RawConn) (err error) {
	if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }); failed != nil {
		return failed
	}
	return err
}

func flowOf(c net.Conn) tcprepair.Flow {
	at := func(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }
	return tcprepair.NewFlow(at(c.RemoteAddr()), at(c.LocalAddr()))
}

// moved is a connection that lives on another host now.
func moved(t *testing.T, from *net.TCPConn, to *netnslab.Host, commit func()) *net.TCPConn {
	t.Helper()
	raw, err := from.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var s *tcprepair.Snapshot
	var failed error
	if err := raw.Control(func(fd uintptr) {
		if failed = tcprepair.Freeze(int(fd)); failed == nil {
			s, failed = tcprepair.Take(int(fd), tcprepair.Limits{})
		}
		if failed == nil {
			failed = tcprepair.Discard(int(fd))
		}
	}); errors.Join(err, failed) != nil {
		t.Fatal(errors.Join(err, failed))
	}
	var conn net.Conn
	if err := to.Do(func() error {
		r, err := tcprepair.Restore(s, tcprepair.RestoreConfig{})
		if err != nil {
			return err
		}
		commit()
		if err := r.Thaw(); err != nil {
			return err
		}
		file := os.NewFile(uintptr(r.Disown()), "moved")
		defer file.Close()
		conn, err = net.FileConn(file)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

func exchange(t *testing.T, a, b net.Conn, text string) {
	t.Helper()
	for _, c := range []struct{ from, to net.Conn }{{a, b}, {b, a}} {
		if err := errors.Join(c.from.SetDeadline(time.Now().Add(5*time.Second)), c.to.SetDeadline(time.Now().Add(5*time.Second))); err != nil {
			t.Fatal(err)
		}
		if _, err := c.from.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(text))
		if _, err := c.to.Read(got); err != nil || string(got) != text {
			t.Fatalf("read %q, %v, want %q", got, err, text)
		}
	}
}

// upload sends more than one packet carries, however large they are made.
func upload(t *testing.T, from, to net.Conn) {
	t.Helper()
	const size = 1 << 20
	sent := bytes.Repeat([]byte{1, 2, 3, 4, 5, 6, 7}, size/7+1)[:size]
	failed := make(chan error, 1)
	go func() {
		_, err := from.Write(sent)
		failed <- err
	}()
	got := make([]byte, size)
	if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("upload: %v, or other bytes", err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

// A connection is accepted here, goes on at one server, then at another, and its ports are used again.
func TestTraffic(t *testing.T) {
	r := newRig(t)
	f := r.open(t, Config{})
	r.configure(t, f)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		exchange(t, client, server, "at the entry")
		for epoch := uint32(1); epoch <= 2; epoch++ {
			node := gate.Node(epoch)
			server = moved(t, server, r.servers[node-1], func() {
				if got, err := f.Commit(flow, epoch, node); err != nil || got.Node != node || got.Epoch != epoch+1 {
					t.Errorf("Commit: %+v, %v", got, err)
				}
			})
			exchange(t, client, server, fmt.Sprintf("at node %d", node))
			upload(t, client, server)
		}
		if got, err := f.Commit(flow, 1, 1); !errors.Is(err, gate.ErrEpoch) || got.Node != 2 || got.Epoch != 3 {
			t.Errorf("late commit: %+v, %v", got, err)
		}
		if got, err := f.Route(flow); err != nil || got.Node != 2 || got.Epoch != 3 {
			t.Errorf("Route: %+v, %v", got, err)
		}
		// The client ends it by a reset, and comes again from the same port, before anybody has said that it is over.
		if err := client.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		client.Close()
		again, here := r.connect(t, vip, flow.Remote)
		exchange(t, again, here, "the next connection is the entry's")
		there := moved(t, here, r.servers[0], func() {
			if got, err := f.Commit(flow, 1, 1); err != nil || got.Node != 1 || got.Epoch != 2 {
				t.Errorf("Commit of the next connection: %+v, %v", got, err)
			}
		})
		exchange(t, again, there, "and moves on as such")
		if err := f.Forget(flow, flow); err != nil {
			t.Fatal(err)
		}
		// Forgotten, its packets are the entry's, which knows no such connection.
		if _, err := again.Write([]byte("lost")); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("after Forget: %v, want a reset", err)
		}
	}
}

// What is in the kernel outlives the process, with its epochs, and the next one takes it over.
func TestTakeOver(t *testing.T) {
	r := newRig(t)
	f := r.open(t, Config{Keep: true})
	r.configure(t, f)
	var clients, servers []net.Conn
	for _, vip := range r.vips {
		client, here := r.connect(t, vip, netip.AddrPort{})
		there := moved(t, here, r.servers[1], func() {
			if _, err := f.Adopt(flowOf(client), 7, 2); err != nil {
				t.Error(err)
			}
		})
		clients, servers = append(clients, client), append(servers, there)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		for i := range clients {
			exchange(t, clients[i], servers[i], "without a process")
		}
		f = r.open(t, Config{Keep: true})
		for i := range clients {
			exchange(t, clients[i], servers[i], "with the next one")
			if got, err := f.Route(flowOf(clients[i])); err != nil || got.Node != 2 || got.Epoch != 7 {
				t.Errorf("Route: %+v, %v", got, err)
			}
			if got, err := f.Adopt(flowOf(clients[i]), 1, 1); !errors.Is(err, gate.ErrExists) || got.Epoch != 7 {
				t.Errorf("Adopt: %+v, %v", got, err)
			}
		}
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	f = r.open(t, Config{})
	if _, err := f.Route(flowOf(clients[0])); !errors.Is(err, gate.ErrNoFlow) {
		t.Errorf("after Remove: %v", err)
	}
}

// Run removes what is left of a connection whose ports are used again, and chains of interfaces that are not named any more go with the next Open.
func TestRun(t *testing.T) {
	r := newRig(t)
	f := r.open(t, Config{Keep: true})
	r.configure(t, f)
	client, here := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	moved(t, here, r.servers[0], func() {
		if _, err := f.Commit(flow, 1, 1); err != nil {
			t.Error(err)
		}
	})
	if err := client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	client.Close()
	r.connect(t, r.vips[0], flow.Remote)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if got, err := f.Route(flow); err == nil && got.Node == 0 && got.Epoch == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the former connection is still there after 5 s")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	chains := func() (n int) {
		if err := r.entry.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			all, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
			for _, c := range all {
				if isHook(c.Name) {
					n++
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := r.entry.Do(func() error {
		f, err := Open(Config{Interfaces: []string{netnslab.Interface, "lo"}, Keep: true})
		if err != nil {
			return err
		}
		return f.Close()
	}); err != nil {
		t.Fatal(err)
	}
	// Two at each.
	if n := chains(); n != 4 {
		t.Errorf("%d chains at interfaces, want 4", n)
	}
	f = r.open(t, Config{})
	if n := chains(); n != 2 {
		t.Errorf("%d chains at interfaces, want 2", n)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if n := chains(); n != 0 {
		t.Errorf("%d chains are left", n)
	}
}

// Packets of a flow whose node nobody knows the way to are dropped: the entry must not answer them.
func TestUnknownNode(t *testing.T) {
	r := newRig(t)
	f := r.open(t, Config{})
	for _, vip := range r.vips {
		if err := f.SetService(vip, []gate.Node{0}); err != nil {
			t.Fatal(err)
		}
		client, server := r.connect(t, vip, netip.AddrPort{})
		if _, err := f.Commit(flowOf(client), 1, 9); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write([]byte("waits")); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := server.Read(make([]byte, 8)); n != 0 || err == nil {
			t.Errorf("the entry has received it")
		}
		// Back here it arrives, repeated by the client.
		if got, err := f.Commit(flowOf(client), 2, 0); err != nil || got.Epoch != 3 {
			t.Fatal(got, err)
		}
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := server.Read(make([]byte, 8)); n != 5 || err != nil {
			t.Errorf("back at the entry: %d bytes, %v", n, err)
		}
	}
}

func TestErrors(t *testing.T) {
	r := newRig(t)
	f := r.open(t, Config{})
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	_, noFlow := f.Commit(tcprepair.Flow{}, 1, 1)
	_, noNode := f.Commit(flow4(), 1, MaxNodes)
	_, noEpoch := f.Adopt(flow4(), 0, 1)
	var open error
	if err := r.entry.Do(func() error {
		_, open = Open(Config{Interfaces: []string{"rhnone"}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"node 0":       f.SetNode(0, 1, mac, mac),
		"too large":    f.SetNode(MaxNodes, 1, mac, mac),
		"no interface": f.SetNode(1, 0, mac, mac),
		"no MAC":       f.SetNode(1, 1, nil, mac),
		"no flow":      noFlow, "no such node": noNode, "epoch 0": noEpoch, "open": open,
		"servers in turn": f.SetService(r.vips[0], []gate.Node{1, 2}),
	} {
		var op *OpError
		if !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := f.SetService(r.vips[0], nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a service without nodes: %v", err)
	}
	if err := f.RemoveService(r.vips[0]); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"SetNode": f.SetNode(1, 1, mac, mac), "Forget": f.Forget(flow4()), "Run": runFor(f, 2*sweepInterval),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s when closed: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Errorf("Run until cancelled: %v", err)
	}
}

func runFor(f *Gate, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f.Run(ctx)
}

// Path is what the dispatcher asks of either way to forward.
type path interface {
	SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error
	SetService(vip netip.AddrPort, nodes []gate.Node) error
	RemoveService(vip netip.AddrPort) error
	Route(tcprepair.Flow) (gate.RouteInfo, error)
	Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error)
	Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error)
	CommitAll(changes ...gate.Change) []gate.Changed
	Forget(flows ...tcprepair.Flow) error
	Run(ctx context.Context) error
	Close() error
	Remove() error
}

var (
	_ path = (*Gate)(nil)
	_ path = (*gate.Gate)(nil)
)
