// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/handoff/migration"
)

func encode(t *testing.T, cfg Config) []byte {
	t.Helper()
	raw, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// reloaded reloads with a configuration, which must succeed.
func (s *stand) reloaded(t *testing.T, cfg Config) {
	t.Helper()
	if err := s.Reload(t.Context(), valid(t, cfg)); err != nil {
		t.Fatalf("%v\n%s", err, s.logs)
	}
}

// TestReloadRoutes changes where requests go. Who has connected before, and asks after, goes the new way.
func TestReloadRoutes(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	at := cfg.Services[0].Addresses[0]
	expect(t, at, "shop.example", "shop")
	expect(t, at, "new.example", "files")
	waiting := visit(t, at, "new.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })

	cfg.Services[0].Routes = []RouteConfig{{Host: "new.example", Pool: "fresh"}}
	cfg.Services[0].Limits.PeekBytes = 1 << 10
	cfg.Pools = append(cfg.Pools, PoolConfig{Name: "fresh", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}}})
	s.reloaded(t, cfg)
	if got, err := waiting.answer(); err != nil || got != "fresh" {
		t.Errorf("who waited got %q %v", got, err)
	}
	expect(t, at, "new.example", "fresh")
	expect(t, at, "shop.example", "files")
	until(t, "the counts go on", func() bool { return s.live.Load().peeking() == 0 })
}

// TestReloadMode lets a service begin to look at its clients' first bytes, and leave it off again.
func TestReloadMode(t *testing.T) {
	cfg := standing(t)
	cfg.Services[0].Limits.PeekTime = time.Minute // for which the listener defers
	other := ServiceConfig{Name: "other", Mode: ModeHTTP, Addresses: []netip.AddrPort{free(t)}, Default: "files"}
	cfg.Services = append(cfg.Services, other)
	s := start(t, cfg)
	at := cfg.Services[0].Addresses[0]
	waiting := visit(t, at, "shop.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })
	http := cfg.Services[0]
	s.outlines.known.Store(at, "deferred")
	s.outlines.known.Store(other.Addresses[0], "deferred")
	cfg.Services[0].Mode, cfg.Services[0].Routes = ModeTCP, nil
	s.reloaded(t, cfg)
	if got, err := waiting.answer(); err != nil || got != "shop" {
		t.Errorf("who was looked at in the old mode got %q %v", got, err)
	}
	if _, known := s.outlines.known.Load(at); known {
		t.Error("the options of the former listener are remembered")
	}
	if _, known := s.outlines.known.Load(other.Addresses[0]); !known {
		t.Error("the options of another listener are forgotten")
	}
	// A server that speaks first is waited for in silence: the listener defers no longer.
	c, err := net.DialTimeout("tcp", at.String(), limit)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(limit))
	if n, err := c.Read(make([]byte, 1)); n != 1 {
		t.Errorf("a silent client is not served: %v", err)
	}
	cfg.Services[0] = http
	s.reloaded(t, cfg)
	expect(t, at, "shop.example", "shop")
}

// TestReloadAddresses moves services between addresses, and keeps the listeners of those that stay.
func TestReloadAddresses(t *testing.T) {
	cfg := standing(t)
	stays, goes, comes := cfg.Services[0].Addresses[0], free(t), free(t)
	cfg.Services[0].Addresses = append(cfg.Services[0].Addresses, goes)
	s := start(t, cfg)
	expect(t, goes, "shop.example", "shop")
	listeners := func() map[netip.AddrPort][]int {
		all := make(map[netip.AddrPort][]int)
		for _, w := range s.workers {
			if err := w.do(t.Context(), func() {
				for fd, d := range w.doors {
					a := d.service.cfg.Addresses[d.at]
					all[a] = append(all[a], int(fd))
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		return all
	}
	before := listeners()
	waiting := visit(t, goes, "shop.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })

	// The order of the addresses changes, one goes, and a new one belongs to a new service.
	cfg.Services[0].Addresses = []netip.AddrPort{stays}
	cfg.Services = append([]ServiceConfig{{Name: "more", Mode: ModeHTTP, Addresses: []netip.AddrPort{comes}, Default: "shop"}}, cfg.Services...)
	s.reloaded(t, cfg)
	after := listeners()
	if !slices.Equal(before[stays], after[stays]) || len(after) != 2 || len(after[comes]) != cfg.Workers {
		t.Errorf("listeners were %v and are %v", before, after)
	}
	expect(t, stays, "shop.example", "shop")
	expect(t, stays, "x.example", "files")
	expect(t, comes, "x.example", "shop")
	refused(t, goes)
	if got, err := waiting.answer(); err != nil || got != "shop" {
		t.Errorf("who was let in at the address that is no more got %q %v", got, err)
	}
	for a, want := range map[netip.AddrPort]bool{stays: true, goes: false, comes: true} {
		if s.table.has(a) != want {
			t.Errorf("%v in the flow table: %v", a, !want)
		}
	}
	// An address changes hands.
	cfg.Services[0].Addresses, cfg.Services[1].Addresses = cfg.Services[1].Addresses, cfg.Services[0].Addresses
	s.reloaded(t, cfg)
	expect(t, stays, "x.example", "shop")
	expect(t, comes, "x.example", "files")
	if !slices.Equal(before[stays], listeners()[stays]) {
		t.Error("the address that changed hands has other listeners")
	}
}

// TestReloadRefuses tries what cannot be done, and expects everything to be as before.
func TestReloadRefuses(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	at, extra, another, taken := cfg.Services[0].Addresses[0], free(t), free(t), free(t)
	ln, err := net.Listen("tcp", taken.String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"two keys that need a restart", func(c *Config) { c.Workers, c.Host = 3, "other" }, "host, workers: "},
		{"a number that means another host", func(c *Config) { c.Peers[0].ID, c.Peers[1].ID = 2, 1 }, "id 2 of b1 is b2's"},
		{"a host with another number", func(c *Config) { c.Peers[1].ID = 7 }, "b2 has the id 2 in the flow table, not 7"},
		{"an address in use", func(c *Config) { c.Services[0].Addresses = []netip.AddrPort{extra, taken} }, "address already in use"},
		{"a full table", func(c *Config) {
			s.table.full = true
			c.Services[0].Addresses = append(c.Services[0].Addresses, extra, another)
			c.Peers = append(c.Peers, PeerConfig{Name: "b9", Address: free(t).String()})
		}, "full"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := valid(t, cfg)
			tt.change(&bad)
			before := s.live.Load()
			err := s.Reload(t.Context(), valid(t, bad))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if s.live.Load() != before {
				t.Error("the plan has changed")
			}
			if n := len(s.roster.duties); n != len(cfg.Peers) {
				t.Errorf("%d backends are worked for", n)
			}
			for _, a := range []netip.AddrPort{extra, another} {
				refused(t, a)
				if s.table.has(a) {
					t.Errorf("%v stays in the flow table", a)
				}
			}
			expect(t, at, "shop.example", "shop")
		})
	}
	s.table.full = false
	cfg.Services[0].Addresses = append(cfg.Services[0].Addresses, extra)
	s.reloaded(t, cfg)
	expect(t, extra, "shop.example", "shop")
}

// TestReloadForgetsNoNumber keeps the numbers of hosts that have gone.
func TestReloadForgetsNoNumber(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	both := cfg.Peers
	cfg.Peers, cfg.Pools = both[:1], cfg.Pools[:1]
	cfg.Pools[0].Backends = cfg.Pools[0].Backends[:1]
	cfg.Services[0].Routes = nil
	s.reloaded(t, cfg)
	if got := s.HostOf(2); got != "b2" {
		t.Errorf("node 2 is %s", got)
	}
	if n, ok := s.Node("b2"); ok {
		t.Errorf("b2 is still node %d", n)
	}
	cfg.Peers = append(slices.Clone(cfg.Peers), PeerConfig{Name: "b3", Address: free(t).String()})
	cfg.Peers[1].ID = 2
	if err := s.Reload(t.Context(), valid(t, cfg)); err == nil || !strings.Contains(err.Error(), "id 2 of b3 is b2's") {
		t.Errorf("b3 as node 2: %v", err)
	}
	cfg.Peers[1].ID = 0 // its place in the list is 2
	s.reloaded(t, cfg)
	if got := s.HostOf(3); got != "b3" {
		t.Errorf("node 3 is %s", got)
	}
}

// TestRestartKeys holds that every key either can be reloaded or is said to need a restart.
func TestRestartKeys(t *testing.T) {
	reloadable := []string{"peers", "services", "pools"}
	typ := reflect.TypeFor[Config]()
	for i := range typ.NumField() {
		key, _, _ := strings.Cut(typ.Field(i).Tag.Get("yaml"), ",")
		var old, cfg Config
		other(t, reflect.ValueOf(&cfg).Elem().Field(i))
		err := needRestart(&old, &cfg)
		var restart *RestartError
		if slices.Contains(reloadable, key) {
			if err != nil {
				t.Errorf("%s: %v", key, err)
			}
		} else if !errors.As(err, &restart) || !slices.Equal(restart.Keys, []string{key}) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// other makes a value other than zero.
func other(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("other")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Struct:
		other(t, v.Field(0))
	default:
		t.Fatalf("a key of kind %v", v.Kind())
	}
}

// TestReloadKeepsOperators keeps what operators have set of backends that stay.
func TestReloadKeepsOperators(t *testing.T) {
	cfg := standing(t)
	cfg.Pools[0].Backends[1].Weight = new(4)
	s := start(t, cfg)
	set := func(pool, backend string, weight *int, drained *bool) {
		for _, m := range s.live.Load().pools[pool].members {
			if m.name == backend {
				m.set(weight, drained, nil, time.Now())
			}
		}
	}
	set("files", "b1", new(7), new(true))
	set("files", "b2", new(9), nil)
	set("shop", "b2", nil, new(true))

	cfg.Pools[0].Backends[1].Weight = new(5) // the newer wish
	cfg.Pools[0].Backends = append(cfg.Pools[0].Backends, BackendConfig{Host: "b3"})
	cfg.Peers = append(cfg.Peers, PeerConfig{Name: "b3", Address: free(t).String()})
	begin := time.Now()
	s.reloaded(t, cfg)
	type state struct {
		weight  int
		drained bool
		slow    bool
	}
	got := map[string]state{}
	for name, p := range s.live.Load().pools {
		for _, m := range p.members {
			got[name+"/"+m.name] = state{m.weight, m.drained, !m.since.Before(begin)}
		}
	}
	want := map[string]state{
		"files/b1": {7, true, false}, "files/b2": {5, false, false}, "files/b3": {1, false, true}, "shop/b2": {1, true, false},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestReloadPeers changes the backends: new ones are connected when Reload returns, and old ones as long as they may be needed.
func TestReloadPeers(t *testing.T) {
	cfg := standing(t)
	cfg.Services[0].Limits.PeekTime = 200 * time.Millisecond
	var one, two, three, moved fakeAgent
	address := func(i int) netip.AddrPort { return netip.MustParseAddrPort(cfg.Peers[i].Address) }
	one.serve(t, "b1", address(0))
	two.serve(t, "b2", address(1))
	s := start(t, cfg)
	until(t, "both agents are connected", func() bool { return one.connected() == 1 && two.connected() == 1 })
	if err := s.command(t.Context(), func(context.Context) error { s.patience = limit; return nil }); err != nil {
		t.Fatal(err)
	}
	b1, b2 := s.backend("b1"), s.backend("b2")
	until(t, "both are up", func() bool { return b1.up() && b2.up() })
	b1.active.Store(5)
	b1.draining.Store(true)

	// A connection is being handed to b2, and belongs to a pool that is about to go.
	pending := &attempt{
		id: 1, c: &dispatched{d: s.Dispatcher, pool: s.live.Load().pools["shop"]}, giver: migration.NewGiver(time.Second, graceTime, false),
	}
	b2.mu.Lock()
	b2.attempts[1] = pending
	b2.mu.Unlock()

	to := free(t)
	three.serve(t, "b3", to)
	cfg.Peers[0].Address = free(t).String()
	moved.serve(t, "b1", address(0))
	cfg.Peers = []PeerConfig{cfg.Peers[0], {Name: "b3", Address: to.String(), ID: 3, MAC: "02:00:5e:10:00:03"}}
	cfg.Pools = []PoolConfig{{Name: "files", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}, {Host: "b3"}}}}
	cfg.Services[0].Routes = nil
	s.reloaded(t, cfg)
	for _, name := range []string{"b1", "b3"} {
		if b := s.backend(name); b == nil || !b.up() {
			t.Errorf("%s is not up after the reload", name)
		}
	}
	if now := s.backend("b1"); now == b1 || now.active.Load() != 5 || !now.draining.Load() {
		t.Error("b1 at its new address does not go on where it was")
	}
	if two.connected() != 1 {
		t.Error("the link to b2 has ended with a connection in handoff")
	}
	if s.attempt("b2", 1) != pending {
		t.Error("the connection that is being handed to b2 is lost")
	}
	// It stays for as long as the connection needs, which is longer than anybody may be peeked at.
	deadline := time.Now().Add(2 * cfg.Services[0].Limits.PeekTime)
	until(t, "time passes", func() bool { return two.connected() != 1 || time.Now().After(deadline) })
	if two.connected() != 1 || one.connected() != 1 {
		t.Error("a link has ended before the connection was handed off")
	}
	b1.active.Add(-1) // an attempt that b1 refused at its old address
	b2.end(1)
	until(t, "the links to b2 and to b1's old address end", func() bool { return two.connected() == 0 && one.connected() == 0 })
	until(t, "b1's count is complete", func() bool { return s.backend("b1").active.Load() == 4 })
	if moved.connected() != 1 || three.connected() != 1 {
		t.Errorf("b1 has %d links, b3 %d", moved.connected(), three.connected())
	}
	s.reloaded(t, cfg)
	if n := len(s.live.Load().hosts); n != 2 {
		t.Errorf("%d hosts are remembered", n)
	}
}

// TestReloadKeepsLinks keeps a backend that nothing leads to any more until those have gone who were let in before.
func TestReloadKeepsLinks(t *testing.T) {
	cfg := standing(t)
	cfg.Services[0].Limits.PeekTime = 500 * time.Millisecond
	var a fakeAgent
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	s := start(t, cfg)
	until(t, "the agent is connected", func() bool { return a.connected() == 1 })
	cfg.Services[0].Routes, cfg.Pools = nil, cfg.Pools[:1]
	cfg.Pools[0].Backends, cfg.Peers = cfg.Pools[0].Backends[:1], cfg.Peers[:1]
	begin := time.Now()
	s.reloaded(t, cfg)
	until(t, "the link ends", func() bool { return a.connected() == 0 })
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("the link has ended after %v", took)
	}
}

// TestReloadUnderLoad loads 10,000 routes while clients come and go.
func TestReloadUnderLoad(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	at := cfg.Services[0].Addresses[0]
	path := filepath.Join(t.TempDir(), "dispatcher.yaml")
	s.SetFile(path)
	small := encode(t, cfg)
	for i := range 10_000 {
		cfg.Services[0].Routes = append(cfg.Services[0].Routes, RouteConfig{Host: fmt.Sprintf("h%05d.example", i), Pool: "shop"})
	}
	big := encode(t, cfg)

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if got, err := ask(at, "shop.example"); err != nil || got != "shop" {
					t.Errorf("%q %v", got, err)
					return
				}
				asked.Add(1)
			}
		})
	}
	until(t, "clients ask", func() bool { return asked.Load() > 100 })
	for range 3 {
		for _, text := range [][]byte{big, small} {
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			begin, before := time.Now(), asked.Load()
			if err := s.ReloadFile(t.Context()); err != nil {
				t.Fatal(err)
			}
			took := time.Since(begin)
			t.Logf("%d routes in %v, %d requests meanwhile", s.live.Load().routes(), took, asked.Load()-before)
			if took > time.Second && !raceDetector {
				t.Errorf("a reload took %v", took)
			}
			want := map[bool]string{true: "shop", false: "files"}[len(text) == len(big)]
			expect(t, at, "h09999.example", want)
		}
	}
	cancel()
	clients.Wait()
}

// TestReloadFile tells apart what is wrong with a file, and logs it.
func TestReloadFile(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	if err := s.ReloadFile(t.Context()); !errors.Is(err, ErrNoFile) {
		t.Errorf("without a file: %v", err)
	}
	path := filepath.Join(t.TempDir(), "dispatcher.yaml")
	s.SetFile(path)
	var config *ConfigError
	if err := s.ReloadFile(t.Context()); !errors.As(err, &config) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(path, []byte("hots: front\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.ReloadFile(t.Context()); !errors.As(err, &config) || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("a wrong key: %v", err)
	}
	if text := s.logs.String(); !strings.Contains(text, "stays as it is") || !strings.Contains(text, "hots") {
		t.Errorf("the log does not tell of it:\n%s", text)
	}
	expect(t, cfg.Services[0].Addresses[0], "shop.example", "shop")
	if err := s.quit(); err != nil {
		t.Error(err)
	}
	if err := s.ReloadFile(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("after the end: %v", err)
	}
}
