// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/api"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/entry"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
	"github.com/rehome-net/rehome/tcprepair"
)

// limit bounds everything that a test waits for.
const limit = 10 * time.Second

// table is a packet path in memory, which knows services and no flows.
type table struct {
	mu       sync.Mutex
	services map[netip.AddrPort]bool
	full     bool // it takes one more service, and no further
	refuses  bool // it has taken that one
	stats    forward.Stats
}

func (t *table) Route(tcprepair.Flow) (gate.RouteInfo, error) {
	return gate.RouteInfo{}, gate.ErrNoFlow
}

func (t *table) Adopt(_ tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	return gate.RouteInfo{Node: owner, Epoch: epoch}, nil
}

func (t *table) Commit(tcprepair.Flow, uint32, gate.Node) (gate.RouteInfo, error) {
	return gate.RouteInfo{}, gate.ErrNoFlow
}

func (t *table) Grant(f tcprepair.Flow, from uint32, n gate.Node) (gate.RouteInfo, error) {
	return t.Commit(f, from, n)
}

func (t *table) Settle(f tcprepair.Flow, epoch uint32, n gate.Node) (gate.RouteInfo, error) {
	return t.Commit(f, epoch, n)
}
func (t *table) Forget(...tcprepair.Flow) error                                   { return nil }
func (t *table) SetNode(gate.Node, int, net.HardwareAddr, net.HardwareAddr) error { return nil }
func (t *table) Close() error                                                     { return nil }
func (t *table) Stats() forward.Stats                                             { return t.stats }

func (t *table) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func (t *table) SetService(a netip.AddrPort, _ []gate.Node) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.full && t.refuses {
		return gate.ErrFull
	}
	t.refuses = t.full
	t.services[a] = true
	return nil
}

func (t *table) RemoveService(a netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.services, a)
	return nil
}

func (t *table) has(a netip.AddrPort) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.services[a]
}

// stand is a dispatcher without a packet path: in the place of handing a connection off it answers with the pool that it has
// chosen. It needs no rights.
type stand struct {
	*Dispatcher
	table *table
	logs  *logs
	// quit ends Run, and returns its error.
	quit func() error
}

// logs is what the dispatcher has logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// start runs a dispatcher for a test.
func start(t *testing.T, cfg Config, prepare ...func(*Dispatcher)) *stand {
	t.Helper()
	leakcheck.Check(t, leakcheck.Config{})
	s := &stand{table: &table{services: make(map[netip.AddrPort]bool)}, logs: &logs{}}
	s.Dispatcher = New(valid(t, cfg), slog.New(slog.NewTextHandler(s.logs, nil)))
	d := s.Dispatcher
	d.self = peer.Self{Host: cfg.Host}
	d.path = s.table
	d.patience = 20 * time.Millisecond // few tests have agents
	for _, f := range prepare {
		f(d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ports, err := d.openPorts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.build(); err != nil {
		ports.close()
		t.Fatal(err)
	}
	for _, w := range d.workers {
		w.found = s.found
	}
	d.entry = entry.New(owners{d}, d, d.log)
	done := make(chan error, 1)
	go func() {
		defer ports.close()
		done <- d.serve(ctx, ports)
	}()
	var once sync.Once
	s.quit = func() (err error) {
		once.Do(func() {
			cancel()
			select {
			case err = <-done:
			case <-time.After(limit):
				err = errors.New("it does not end")
			}
		})
		return err
	}
	t.Cleanup(func() {
		if err := s.quit(); err != nil {
			t.Errorf("%v\n%s", err, s.logs)
		}
	})
	return s
}

// found says where a connection would go.
func (s *stand) found(p *peeking, key peek.Key) {
	name := "none"
	if to := p.service.pool(&key); to != nil {
		name = to.cfg.Name
	}
	text := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(name), name)
	s.refuse(&dispatched{d: s.Dispatcher, fd: p.fd, service: p.service, flow: p.flow}, []byte(text))
}

// operator returns a client of the dispatcher.
func (s *stand) operator(t *testing.T) *api.Client {
	t.Helper()
	c, err := api.Dial(s.cfg.Control, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// standing returns a configuration with the service web at a free address, without backends that can be reached.
func standing(t *testing.T) Config {
	t.Helper()
	return Config{
		Host: "front", Interfaces: []string{"lo"}, Plaintext: true, Pin: pinOff, Workers: 2, Listen: "127.0.0.1:0",
		Control: filepath.Join(t.TempDir(), "control.sock"),
		Peers:   []PeerConfig{{Name: "b1", Address: free(t).String()}, {Name: "b2", Address: free(t).String()}},
		Services: []ServiceConfig{{
			Name: "web", Mode: ModeHTTP, Addresses: []netip.AddrPort{free(t)}, Default: "files",
			Routes: []RouteConfig{{Host: "shop.example", Pool: "shop"}},
		}},
		Pools: []PoolConfig{
			{Name: "files", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}, {Host: "b2"}}},
			{Name: "shop", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b2"}}},
		},
	}
}

// valid returns the configuration as it would be read from a file: nothing in it is shared with cfg.
func valid(t *testing.T, cfg Config) Config {
	t.Helper()
	read, err := ReadConfig(bytes.NewReader(encode(t, cfg)))
	if err != nil {
		t.Fatal(err)
	}
	return read
}

// lastAddress numbers the addresses on loopback that tests use.
var lastAddress atomic.Uint32

// free returns an address that nothing listens at, and that no other test gets.
func free(t *testing.T) netip.AddrPort {
	t.Helper()
	n := lastAddress.Add(1)
	addr := netip.AddrFrom4([4]byte{127, 77, byte(n >> 8), byte(n)})
	ln, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return netip.MustParseAddrPort(ln.Addr().String())
}

// client is a connection whose request has not been sent in whole.
type client struct {
	net.Conn
	host string
}

// visit connects and sends the beginning of a request for a host name.
func visit(t *testing.T, at netip.AddrPort, host string) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", at.String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	return &client{c, host}
}

// answer sends the rest, and returns the answer: the name of a pool.
func (c *client) answer() (string, error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := fmt.Fprintf(c, "Host: %s\r\n\r\n", c.host); err != nil {
		return "", err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer r.Body.Close() //nolint:errcheck // read in whole
	text, err := io.ReadAll(r.Body)
	return string(text), err
}

// ask asks for a host name on a connection of its own.
func ask(at netip.AddrPort, host string) (string, error) {
	c, err := net.DialTimeout("tcp", at.String(), limit)
	if err != nil {
		return "", err
	}
	defer c.Close() //nolint:errcheck // read in whole
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n"); err != nil {
		return "", err
	}
	return (&client{c, host}).answer()
}

// expect asks, and checks the answer.
func expect(t *testing.T, at netip.AddrPort, host, pool string) {
	t.Helper()
	if got, err := ask(at, host); err != nil || got != pool {
		t.Errorf("%s at %v: %q %v, want %q", host, at, got, err, pool)
	}
}

// refused checks that nothing listens at an address.
func refused(t *testing.T, at netip.AddrPort) {
	t.Helper()
	if c, err := net.DialTimeout("tcp", at.String(), limit); err == nil {
		_ = c.Close()
		t.Errorf("something listens at %v", at)
	}
}

// until waits for a condition.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// fakeAgent is a backend's agent that only shows signs of life.
type fakeAgent struct {
	mu    sync.Mutex
	links []*wire.Link
	ended int
	// cookies are what it was told of them.
	cookies []*wire.Cookies
	// unable is why it cannot serve unmodified servers.
	unable string
}

// serve runs the agent of a host at an address.
func (a *fakeAgent) serve(t *testing.T, host string, at netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, link, err := peer.Self{Host: host}.Accept(t.Context(), conn, func(string) bool { return true })
			if err != nil {
				continue
			}
			a.mu.Lock()
			a.links = append(a.links, link)
			a.mu.Unlock()
			work.Go(func() {
				a.pong(link)
				_ = link.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		a.mu.Lock()
		for _, l := range a.links {
			go l.Close()
		}
		a.mu.Unlock()
		work.Wait()
	})
}

func (a *fakeAgent) pong(link *wire.Link) {
	for {
		f, _, err := link.Receive()
		if err != nil {
			a.mu.Lock()
			a.ended++
			a.mu.Unlock()
			return
		}
		switch m := f.Message.(type) {
		case *wire.Ping:
			_ = link.Send(f.ID, &wire.Pong{})
		case *wire.Cookies:
			_ = link.Send(f.ID, &wire.CookiesTaken{})
			a.mu.Lock()
			a.cookies = append(a.cookies, m)
			unable := a.unable
			a.mu.Unlock()
			if m.Unmodified {
				_ = link.Send(0, &wire.Unmodified{Unable: unable})
			}
		}
	}
}

// becomes tells the dispatcher whether it can serve unmodified servers.
func (a *fakeAgent) becomes(unable string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unable = unable
	for _, l := range a.links {
		_ = l.Send(0, &wire.Unmodified{Unable: unable})
	}
}

// asked reports whether the last thing that it heard was a question for that.
func (a *fakeAgent) asked() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.cookies) > 0 && a.cookies[len(a.cookies)-1].Unmodified
}

// connected returns how many links the agent has now.
func (a *fakeAgent) connected() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.links) - a.ended
}
