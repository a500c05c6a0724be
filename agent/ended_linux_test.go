// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/handoff/wire"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
	"github.com/rehome-net/rehome/tcprepair"
)

// openGate opens a gate on a host of a lab, until the test ends.
func openGate(t testing.TB, h *netnslab.Host) *gate.Gate {
	t.Helper()
	var g *gate.Gate
	if err := h.Do(func() (err error) {
		g, err = gate.Open(gate.Config{Interfaces: []string{netnslab.Interface}})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// entryEngine is the engine of host "b", an entry with a gate; its peers are the servers a and c.
func entryEngine(t testing.TB, g *gate.Gate, at netip.AddrPort) *engine {
	t.Helper()
	c := Config{
		Host: "b", Interfaces: []string{netnslab.Interface}, Plaintext: true,
		Peers:    []PeerConfig{{Name: "a", Address: "127.0.0.1:1"}, {Name: "c", Address: "127.0.0.1:1"}, {Name: "d", Address: "127.0.0.1:1"}},
		Services: []ServiceConfig{{Name: "s", Addresses: []netip.AddrPort{at}, Entry: "b", Servers: []string{"a", "c", "b"}}},
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return newEngine(c, g, nil, newMetrics(), nil, slog.New(slog.DiscardHandler))
}

// TestFlowEnded says in turn, as each host, that a flow is over: only its owner is believed.
func TestFlowEnded(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	g := openGate(t, labtest.Host(t, lab, "entry"))
	e := entryEngine(t, g, testAddress())
	elsewhere := tcprepair.NewFlow(netip.MustParseAddrPort("10.9.9.9:81"), netip.MustParseAddrPort("10.0.0.1:1"))
	for i, c := range []struct {
		name  string
		owner gate.Node
		hold  bool
		flow  tcprepair.Flow
		from  string
		epoch uint32
		quiet time.Duration
		gone  bool
	}{
		{name: "the owner", owner: 1, from: "a", gone: true},
		{name: "the owner, who knows the epoch", owner: 1, from: "a", epoch: 7, gone: true},
		{name: "the owner, of an older epoch", owner: 1, from: "a", epoch: 6},
		{name: "the owner, of a flow that is not quiet", owner: 1, from: "a", quiet: time.Hour},
		{name: "a former owner", owner: 2, from: "a"},
		{name: "a host that is no server", owner: 3, from: "d"},
		{name: "a stranger", owner: 1, from: "x"},
		{name: "this host itself", owner: 0, from: "b", gone: true},
		{name: "this host, of another's flow", owner: 1, from: "b"},
		{name: "the owner, of a flow that is held here", owner: 1, hold: true, from: "a"},
		{name: "the owner, of no service", owner: 1, flow: elsewhere, from: "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.flow
			if !f.IsValid() {
				f = testFlow(i + 1)
			}
			if _, err := g.Adopt(f, 7, c.owner); err != nil {
				t.Fatal(err)
			}
			if c.hold {
				if err := g.Hold(f, gate.Ingress, time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			e.request(&incoming{e: e, name: c.from}, wire.Frame{Message: &wire.Ended{Flow: f, Epoch: c.epoch, Quiet: c.quiet}})
			if _, err := g.Route(f); errors.Is(err, gate.ErrNoFlow) != c.gone {
				t.Errorf("the flow afterwards: %v", err)
			}
			// Once more: it is no error.
			e.request(&incoming{e: e, name: c.from}, wire.Frame{Message: &wire.Ended{Flow: f, Epoch: c.epoch, Quiet: c.quiet}})
		})
	}
}

// TestEndsReachTheEntry makes ten thousand short connections through an entry to a server that knows nothing of rehome. Of none the
// entry keeps anything.
func TestEndsReachTheEntry(t *testing.T) {
	const connections, workers = 10000, 8
	leakcheck.Check(t, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()})
	topo := netnslab.Standard(1)
	at := netip.AddrPortFrom(topo.VIP4(), 80)
	lab := labtest.New(t, topo)
	client, entry, server := labtest.Host(t, lab, "client"), labtest.Host(t, lab, "entry"), labtest.Host(t, lab, "a")
	g := openGate(t, entry)
	from, err := entry.Link()
	if err != nil {
		t.Fatal(err)
	}
	to, err := server.Link()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetNode(1, from.Index, to.MAC, from.MAC); err != nil {
		t.Fatal(err)
	}
	if err := g.SetService(at, []gate.Node{1}); err != nil {
		t.Fatal(err)
	}
	entryE := entryEngine(t, g, at)
	serverE := serverEngine(t, at)
	joinEngines(t, entryE, serverE)
	runEnds(t, server, serverE, at)

	l, err := server.Listen(t.Context(), "tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go echo(l)
	flows := make(chan tcprepair.Flow, connections)
	failed := make(chan error, workers)
	for range workers {
		go func() { failed <- talk(t.Context(), client, at, connections/workers, flows) }()
	}
	for range workers {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	close(flows)
	deadline := time.Now().Add(20 * time.Second)
	left, distinct := 0, make(map[tcprepair.Flow]bool)
	for f := range flows {
		distinct[f] = true
		for {
			_, err := g.Route(f)
			if errors.Is(err, gate.ErrNoFlow) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if time.Now().After(deadline) {
				left++
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	if left > 0 {
		t.Errorf("the entry still knows %d flows", left)
	}
	if s := g.Stats(); s.Assigned < connections {
		t.Errorf("only %d connections went by the entry", s.Assigned)
	}
	// The client uses ports again: such a flow may be forgotten once for all its connections.
	if n := metric(t, entryE, "rehome_forgotten_flows_total"); n < float64(len(distinct)) || n > connections {
		t.Errorf("%v flows were forgotten, of %d", n, len(distinct))
	}
	if told, untold := tellings(t, serverE); told < float64(len(distinct)) || told > connections || untold != 0 {
		t.Errorf("%v ends told, %v not", told, untold)
	}
}

// serverEngine is host a's.
func serverEngine(t testing.TB, at netip.AddrPort) *engine {
	t.Helper()
	c := Config{
		Host: "a", Interfaces: []string{netnslab.Interface}, Plaintext: true,
		Peers:    []PeerConfig{{Name: "b", Address: "127.0.0.1:1"}},
		Services: []ServiceConfig{{Name: "s", Addresses: []netip.AddrPort{at}, Entry: "b", Servers: []string{"a"}}},
	}
	c.Gate.EndLinger = time.Nanosecond // the client always closes first here
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return newEngine(c, nil, nil, newMetrics(), nil, slog.New(slog.DiscardHandler))
}

// joinEngines runs the engines, with a link from the server's to the entry's.
func joinEngines(t testing.TB, entryE, serverE *engine) {
	t.Helper()
	near, far := net.Pipe()
	in := &incoming{e: entryE, name: "a", link: wire.NewLink(far), heard: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { _ = entryE.run(ctx) })
	all.Go(func() { _ = serverE.run(ctx) })
	all.Go(in.receive)
	if !serverE.ask(ctx, func(e *engine) { e.peers["b"].up(wire.NewLink(near)) }) {
		t.Fatal("the engine does not run")
	}
	t.Cleanup(func() {
		cancel()
		serverE.closeLinks()
		entryE.closeLinks()
		all.Wait()
	})
}

// runEnds watches connections on a host for its engine.
func runEnds(t testing.TB, h *netnslab.Host, e *engine, at netip.AddrPort) {
	t.Helper()
	var w *sockops.Watcher
	var d *diagnosis
	err := h.Do(func() (err error) {
		if d, err = openDiagnosis(); err != nil {
			return err
		}
		w, err = sockops.Watch(sockops.WatchConfig{Services: []netip.AddrPort{at}})
		return err
	})
	if errors.Is(err, sockops.ErrNoCgroup) || errors.Is(err, sockops.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- newEnds(e, w, d).run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		d.close()
	})
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}()
	}
}

// talk makes n connections, one after the other, and ends them with FIN or RST.
func talk(ctx context.Context, client *netnslab.Host, at netip.AddrPort, n int, flows chan<- tcprepair.Flow) error {
	b := make([]byte, 4)
	for range n {
		c, err := client.Dial(ctx, "tcp", at.String())
		if err != nil {
			return err
		}
		near := c.LocalAddr().(*net.TCPAddr).AddrPort()
		flows <- tcprepair.NewFlow(at, near)
		if _, err = c.Write([]byte("ping")); err == nil {
			_, err = io.ReadFull(c, b)
		}
		if near.Port()%2 == 0 {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
		if err := errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestOpenEnds opens what sees connections end, and does without where that is not wanted, or not possible.
func TestOpenEnds(t *testing.T) {
	labtest.RequireRoot(t)
	no := false
	for _, c := range []struct {
		name    string
		change  func(*Config)
		without bool // capabilities
		warned  bool
		open    bool
	}{
		{name: "by default", change: func(*Config) {}, open: true},
		{name: "switched off", change: func(c *Config) { c.Gate.ReportEnds = &no }},
		{name: "nothing is served yet", change: func(c *Config) { c.Services = nil }, open: true},
		{name: "without rights", change: func(*Config) {}, without: true, warned: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var text strings.Builder
			cfg := serverEngine(t, testAddress()).cfg
			c.change(&cfg)
			a := New(cfg, slog.New(slog.NewTextHandler(&text, nil)))
			opened := make(chan bool)
			go func() {
				runtime.LockOSThread() // the thread ends with the goroutine, and its capabilities
				if c.without {
					none := make([]unix.CapUserData, 2)
					if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
						t.Error(err)
					}
				}
				ends, closeAll := a.openEnds(newEngine(cfg, nil, nil, newMetrics(), nil, a.log))
				closeAll()
				opened <- ends != nil
			}()
			switch open, warned := <-opened, strings.Contains(text.String(), "level=WARN"); {
			case c.open && !open && warned:
				t.Skip(text.String())
			case open != c.open || warned != c.warned:
				t.Errorf("open: %v, warned: %v\n%s", open, warned, &text)
			}
		})
	}
}
