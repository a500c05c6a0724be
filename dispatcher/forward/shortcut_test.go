// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/shortcut"
)

// noticed waits longer than eventually: what is looked at every second takes several answers of a kernel that others keep busy.
func noticed(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not noticed: " + what)
		}
	}
}

// run has a forwarder Run for the test's time.
func run(t *testing.T, f *Forwarder) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (c *cluster) acquaint(t *testing.T) {
	t.Helper()
	// The entry knows a neighbour once it has had something to say to it.
	conn := c.dial(t, "tcp", "10.66.0.2:7")
	if s := who(t, conn); s != "0" {
		t.Fatalf("the entry's own address: served by %s", s)
	}
}

// sent counts what left by the entry's interface, arrived what its other end had from it.
func (c *cluster) sent(t *testing.T) uint64 {
	t.Helper()
	return c.entry.Link(t, "eth0").Attrs().Statistics.TxPackets
}

func (c *cluster) arrived(t *testing.T) uint64 {
	t.Helper()
	return c.entry.hub.Link(t, c.entry.port).Attrs().Statistics.RxPackets
}

// echoed sends n bytes through the entry, which come back straight from the server, and compares them.
func (c *cluster) echoed(t *testing.T, vip string, n int) {
	t.Helper()
	conn := c.dial(t, "tcp", vip)
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ramp := make([]byte, n)
	for i := range ramp {
		ramp[i] = byte(i % 251)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := conn.Write(ramp)
		failed <- err
	}()
	back := make([]byte, n)
	if _, err := io.ReadFull(conn, back); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ramp, back) {
		t.Error("what came back is not what was sent")
	}
}

func (c *cluster) echo(t *testing.T, f *Forwarder, vips ...string) {
	t.Helper()
	for _, vip := range vips {
		l := c.servers[0].listen(t, vip)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
		if err := f.SetService(netip.MustParseAddrPort(vip), []gate.Node{1}); err != nil {
			t.Fatal(err)
		}
	}
}

// Forwarded frames skip the entry's interface, and arrive whole: GSO packets, checksums that are still to be made, fragments, both versions of IP.
func TestShortcut(t *testing.T) {
	c := newCluster(t)
	serve(t, c.entry, 0, "10.66.0.2:7")
	var mu sync.Mutex
	var told []bool
	f := c.entry.forwarder(t, Config{ShortcutChanged: func(ifindex int, short bool) {
		if ifindex != c.entry.index(t) {
			t.Errorf("interface %d", ifindex)
		}
		mu.Lock()
		defer mu.Unlock()
		told = append(told, short)
	}})
	c.configure(t, f)
	c.acquaint(t)
	if w := f.Ways(); len(w) != 1 || w[0].Interface != "eth0" || w[0].Shortcut || !errors.Is(w[0].Why, errUnproved) {
		t.Errorf("before Run: %+v", w)
	}
	run(t, f)
	noticed(t, "shortcut", func() bool { return f.Ways()[0].Shortcut })
	if w := f.Ways(); w[0].Why != nil {
		t.Errorf("%+v", w)
	}
	c.exercise(t, f)
	vips := []string{"10.66.0.100:81", "[fd66::100]:81"}
	c.echo(t, f, vips...)
	sent, arrived, forwarded := c.sent(t), c.arrived(t), f.Stats().Forwarded
	for _, vip := range vips {
		c.echoed(t, vip, 16<<20)
	}
	sent, arrived, forwarded = c.sent(t)-sent, c.arrived(t)-arrived, f.Stats().Forwarded-forwarded
	// The entry may have asked for a neighbour meanwhile.
	if forwarded < 100 || sent > 10 || arrived < forwarded {
		t.Errorf("forwarded %d, of which %d left by the interface, and %d arrived at its other end", forwarded, sent, arrived)
	}
	mu.Lock()
	defer mu.Unlock()
	if d := cmp.Diff([]bool{true}, told); d != "" {
		t.Error(d)
	}
}

// What makes the shortcut wrong ends it, while the traffic goes on.
func TestShortcutEnds(t *testing.T) {
	c := newCluster(t)
	serve(t, c.entry, 0, "10.66.0.2:7")
	f := c.entry.forwarder(t, Config{})
	c.configure(t, f)
	c.acquaint(t)
	run(t, f)
	conn := c.dial(t, "tcp", vip4)
	first := who(t, conn)
	expect := func(when string, want error) {
		t.Helper()
		noticed(t, when, func() bool {
			w := f.Ways()[0]
			return w.Shortcut == (want == nil) && errors.Is(w.Why, want)
		})
		before := c.sent(t)
		for range 20 {
			if s := who(t, conn); s != first {
				t.Errorf("%s: served by %s, then by %s", when, first, s)
			}
		}
		if n := c.sent(t) - before; (n < 20) != (want == nil) {
			t.Errorf("%s: %d frames left by the interface", when, n)
		}
	}
	expect("at first", nil)
	queue := &netlink.GenericQdisc{QdiscType: "pfifo", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: c.entry.index(t), Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0),
	}}
	if err := c.entry.nl.QdiscAdd(queue); err != nil {
		t.Fatal(err)
	}
	expect("a queue", shortcut.ErrObserved)
	if err := c.entry.nl.QdiscDel(queue); err != nil {
		t.Fatal(err)
	}
	expect("no queue any more", nil)
	// Down for a moment: asked again afterwards.
	port := c.entry.hub.Link(t, c.entry.port)
	if err := c.entry.hub.nl.LinkSetDown(port); err != nil {
		t.Fatal(err)
	}
	noticed(t, "down", func() bool { return errors.Is(f.Ways()[0].Why, shortcut.ErrDown) })
	if err := c.entry.hub.nl.LinkSetUp(port); err != nil {
		t.Fatal(err)
	}
	c.acquaint(t) // the kernel forgets neighbours with the carrier
	expect("up again", nil)
}

// The gate's program at the way out looks at nothing that is forwarded, so it is no obstacle.
func TestShortcutWithGate(t *testing.T) {
	c := newCluster(t)
	serve(t, c.entry, 0, "10.66.0.2:7")
	var g *gate.Gate
	c.entry.do(t, func() (err error) {
		g, err = gate.Open(gate.Config{Interfaces: []string{"eth0"}})
		return err
	})
	t.Cleanup(func() { g.Close() })
	f := c.entry.forwarder(t, Config{})
	c.configure(t, f)
	c.acquaint(t)
	run(t, f)
	noticed(t, "shortcut", func() bool { return f.Ways()[0].Shortcut })
	who(t, c.dial(t, "tcp", vip6))
}

func TestShortcutIsNotUsed(t *testing.T) {
	t.Run("switched off", func(t *testing.T) {
		c := newCluster(t)
		serve(t, c.entry, 0, "10.66.0.2:7")
		f := c.entry.forwarder(t, Config{NoShortcut: true})
		c.configure(t, f)
		c.acquaint(t)
		run(t, f)
		before := c.sent(t)
		conn := c.dial(t, "tcp", vip4)
		for range 20 {
			who(t, conn)
		}
		if n := c.sent(t) - before; n < 20 {
			t.Errorf("%d frames left by the interface", n)
		}
		if w := f.Ways()[0]; w.Shortcut || !errors.Is(w.Why, errOff) {
			t.Errorf("%+v", w)
		}
	})
	t.Run("nobody to ask", func(t *testing.T) {
		h := network(t, 1)[0]
		f := h.forwarder(t, Config{})
		run(t, f)
		noticed(t, "a reason", func() bool { return errors.Is(f.Ways()[0].Why, shortcut.ErrNoNeighbour) })
	})
	t.Run("nobody answers", func(t *testing.T) {
		h := network(t, 1)[0]
		f := h.forwarder(t, Config{Peers: []netip.Addr{netip.MustParseAddr("10.66.0.77")}})
		run(t, f)
		noticed(t, "a reason", func() bool { return errors.Is(f.Ways()[0].Why, shortcut.ErrLost) })
	})
	t.Run("one namespace", func(t *testing.T) {
		h := newHost(t)
		if err := h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}); err != nil {
			t.Fatal(err)
		}
		f := h.forwarder(t, Config{})
		run(t, f)
		noticed(t, "a reason", func() bool { return errors.Is(f.Ways()[0].Why, shortcut.ErrSameNamespace) })
	})
}

// A process goes on with pinned tables by the whole way until it has seen for itself.
func TestShortcutIsProvedAnew(t *testing.T) {
	c := newCluster(t)
	serve(t, c.entry, 0, "10.66.0.2:7")
	config := Config{Interfaces: []string{"eth0"}, MaxFlows: 1000, PinPath: bpffs(t)}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, f)
	c.acquaint(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	noticed(t, "shortcut", func() bool { return f.Ways()[0].Shortcut })
	conn := c.dial(t, "tcp", vip4)
	first := who(t, conn)
	talk := func() uint64 {
		before := c.sent(t)
		for range 20 {
			if s := who(t, conn); s != first {
				t.Errorf("served by %s, then by %s", first, s)
			}
		}
		return c.sent(t) - before
	}
	cancel()
	if err := errors.Join(<-done, f.Close()); err != nil {
		t.Fatal(err)
	}
	if n := talk(); n >= 20 {
		t.Errorf("without a process, %d frames left by the interface", n)
	}
	config.NoShortcut = true
	if f, err = c.entry.open(t, config); err != nil {
		t.Fatal(err)
	}
	if n := talk(); n < 20 {
		t.Errorf("switched off by the next process, %d frames left by the interface", n)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}
