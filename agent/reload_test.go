// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// changed returns a validated copy of an engine's configuration with a change.
func changed(t *testing.T, e *engine, change func(*Config)) Config {
	t.Helper()
	raw, err := yaml.Marshal(e.cfg)
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	if err := yaml.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	change(&c)
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c
}

// reloaded reloads, which must succeed.
func reloaded(t *testing.T, e *engine, change func(*Config)) {
	t.Helper()
	if err := e.reload(changed(t, e, change)); err != nil {
		t.Fatal(err)
	}
	for _, p := range e.peers {
		p.dialing = true // testEngine's habit
	}
}

func without(name string) func(*Config) {
	return func(c *Config) {
		c.Peers = slices.DeleteFunc(c.Peers, func(p PeerConfig) bool { return p.Name == name })
		for i := range c.Services {
			s := &c.Services[i]
			s.Servers = slices.DeleteFunc(s.Servers, func(n string) bool { return n == name })
		}
	}
}

// TestReloadRefuses tries what a reload cannot do: the error says which keys, or what is wrong, and the configuration stays.
func TestReloadRefuses(t *testing.T) {
	off := false
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"host", func(c *Config) { c.Host, c.Services = "z", nil }, "host: cannot be changed"},
		{"interfaces", func(c *Config) { c.Interfaces = []string{"lo", "eth1"} }, "interfaces: cannot"},
		{"listen", func(c *Config) { c.Listen = ":7171" }, "listen: cannot"},
		{"control", func(c *Config) { c.Control = "/run/other.sock" }, "control: cannot"},
		{"applications", func(c *Config) { c.Applications = "/run/other.sock" }, "applications: cannot"},
		{"metrics", func(c *Config) { c.Metrics = "127.0.0.1:9470" }, "metrics: cannot"},
		{"tls", func(c *Config) {
			c.Plaintext, c.TLS.Certificate, c.TLS.Key, c.TLS.Authority = false, "c", "k", "a"
		}, "tls, plaintext: cannot"},
		{"pin", func(c *Config) { c.Gate.Pin = "/sys/fs/bpf/other" }, "gate.pin: cannot"},
		{"flows", func(c *Config) { c.Gate.MaxFlows = 5 }, "gate.max_flows: cannot"},
		{"held packets", func(c *Config) { c.Gate.HoldPackets = 5 }, "gate.hold_packets: cannot"},
		{"held bytes", func(c *Config) { c.Gate.HoldBytes = 5 }, "gate.hold_bytes: cannot"},
		{"held bytes of all", func(c *Config) { c.Gate.HoldTotal = 1 << 30 }, "gate.hold_total: cannot"},
		{"idle time", func(c *Config) { c.Gate.IdleTimeout = time.Second }, "gate.idle_timeout: cannot"},
		{"reports", func(c *Config) { c.Gate.ReportEnds = &off }, "gate.report_ends: cannot"},
		{"seeding", func(c *Config) { c.Migration.SeedWindow = &off }, "migration.seed_window: cannot"},
		{"two keys", func(c *Config) { c.Listen, c.Metrics = ":7171", ":1" }, "listen, metrics: cannot"},
		{"another's id", func(c *Config) { c.Peers[0].Name, c.Services = "d", nil }, "id 1 of d is b's"},
		{"another id", func(c *Config) { c.Peers[1].ID = 9 }, "c has the id 2 in the flow table, not 9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := testEngine(t, "b", "a", "b")
			ends := newFakeEnds()
			e.watched = ends
			before := e.cfg
			shared := e.shared.Load()
			cfg := changed(t, e, func(c *Config) {
				c.Migration.Concurrency = 1 // what could be changed stays with the rest
				tt.change(c)
			})
			err := e.reload(cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
			var restart *RestartError
			if errors.As(err, &restart) != strings.Contains(tt.want, "cannot") {
				t.Errorf("%T", err)
			}
			if d := cmp.Diff(before, e.cfg, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
				t.Errorf("the configuration has changed:\n%s", d)
			}
			if e.shared.Load() != shared || ends.services != nil || e.peer("b") == nil || e.peer("d") != nil {
				t.Error("something has changed")
			}
		})
	}
}

// TestReloadUnwatched has the kernel refuse to watch the new services.
func TestReloadUnwatched(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	ends := newFakeEnds()
	e.watched, ends.err = ends, errors.New("the table is full")
	before := e.cfg
	if err := e.reload(changed(t, e, func(c *Config) { c.Services[0].Servers = []string{"a"} })); !errors.Is(err, ends.err) {
		t.Errorf("%v", err)
	}
	if d := cmp.Diff(before, e.cfg, cmpopts.EquateComparable(netip.AddrPort{})); d != "" {
		t.Errorf("the configuration has changed:\n%s", d)
	}
	if !slices.Equal(ends.services, before.addresses()) {
		t.Errorf("watched are %v", ends.services)
	}
}

// TestReloadLimits changes what holds from the next move on.
func TestReloadLimits(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	ends := newFakeEnds()
	e.watched = ends
	s := newEnds(e, ends, ends)
	more := netip.MustParseAddrPort("10.9.9.9:81")
	watching := e.shared.Load()
	reloaded(t, e, func(c *Config) {
		c.Migration.Limit, c.Migration.Concurrency, c.Migration.Incoming = 3*time.Second, 7, 1
		c.Gate.StrayTime, c.Gate.EndLinger = time.Second, 5*time.Second
		c.Services[0].Addresses = append(c.Services[0].Addresses, more)
		c.Services = append(c.Services, ServiceConfig{
			Name: "c", Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.9.9.8:80")}, Entry: "c", Servers: []string{"a"},
		})
	})
	s.sort(time.Now(), nil)
	if e.times.Limit != 3*time.Second || s.linger.time != 5*time.Second || e.cfg.Gate.StrayTime != time.Second {
		t.Errorf("limit %v, linger %v", e.times.Limit, s.linger.time)
	}
	if !slices.Equal(ends.services, e.cfg.addresses()) || len(ends.services) != 3 {
		t.Errorf("watched are %v", ends.services)
	}
	if e.entries[more] != "b" || e.entries[netip.MustParseAddrPort("10.9.9.8:80")] != "c" {
		t.Errorf("the entries are %v", e.entries)
	}
	select {
	case <-watching.replaced:
	default:
		t.Error("who watches the peers is not told")
	}
	var op *operation
	e.startOperation(MoveRequest{}, func(int) {}, func(Moved) {}, func(error) {})
	for op = range e.ops {
		if op.req.Concurrency != 7 {
			t.Errorf("concurrency %d", op.req.Concurrency)
		}
	}
	// An application may register the new service.
	a, far := testApplication(t, e)
	a.frame(wire.Frame{Message: &wire.Register{Service: "c"}}, -1)
	e.flush()
	for {
		f, _, err := far.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if f.Message.Kind() == wire.KindList {
			continue
		}
		if f.Message.Kind() != wire.KindRegistered {
			t.Errorf("answered with %v", f.Message.Kind())
		}
		break
	}
}

// connect gives an engine a connection to a peer; the test has the other end.
func connect(t *testing.T, p *outgoing) *wire.Link {
	t.Helper()
	near, far := net.Pipe()
	p.dialing = false
	p.up(wire.NewLink(near))
	link := wire.NewLink(far)
	near1 := p.link
	t.Cleanup(func() { _, _ = near1.Close(), link.Close() })
	return link
}

// TestReloadRemovesPeer removes a host to which a connection is being moved: the move goes on, and then nothing is left of the host.
func TestReloadRemovesPeer(t *testing.T) {
	e := testEngine(t, "b", "a", "b", "c")
	a, _ := testApplication(t, e)
	far := connect(t, e.peers["c"])
	e.absent["c"] = true
	var ends []Moved
	e.startSource(a, located1(a, 1).status, "c", func(m Moved) { ends = append(ends, m) })
	reloaded(t, e, without("c"))
	e.tick(time.Now())
	if len(ends) != 0 || e.peers["c"] == nil || e.peers["c"].link == nil {
		t.Fatalf("the move has ended: %+v", ends)
	}
	if n, ok := e.hosts.Node("c"); !ok || n != 2 || e.hosts.HostOf(2) != "c" {
		t.Errorf("c's flows are node %d's, of %s", n, e.hosts.HostOf(2))
	}
	e.startSource(a, located1(a, 2).status, "c", func(m Moved) { ends = append(ends, m) })
	if len(ends) != 1 || !strings.Contains(ends[0].Err.Error(), "no configured peer") {
		t.Errorf("another move: %+v", ends)
	}
	if e.absent["c"] || e.known("c") || !e.known("b") {
		t.Error("c is still known")
	}
	// Again, with another change: it must not come back.
	reloaded(t, e, func(c *Config) { c.Migration.Concurrency = 3 })
	e.tick(time.Now())
	if p := e.peers["c"]; p == nil || p.link == nil {
		t.Fatal("the connection has gone before the move")
	}
	for _, s := range e.sources {
		e.answer(e.peers["c"], wire.Frame{ID: s.id, Message: &wire.Refuse{Code: wire.CodeDraining}})
	}
	if len(ends) != 2 || ends[1].Outcome != OutcomeResumed {
		t.Errorf("the move: %+v", ends)
	}
	e.tick(time.Now())
	if e.peers["c"] != nil {
		t.Error("c is still there")
	}
	var err error
	for err == nil { // what was sent before
		_, _, err = far.Receive()
	}
	// With another's id it may not come back, with its own it may.
	add := func(id uint16) func(*Config) {
		return func(c *Config) { c.Peers = append(c.Peers, PeerConfig{Name: "c", Address: "127.0.0.1:1", ID: id}) }
	}
	if err := e.reload(changed(t, e, add(3))); err == nil || !strings.Contains(err.Error(), "not 3: write id: 2") {
		t.Errorf("back with another id: %v", err)
	}
	reloaded(t, e, add(2))
	if e.peer("c") == nil {
		t.Error("c is not back")
	}
}

// TestReloadMovesPeer changes a peer's address, with a move in flight and without.
func TestReloadMovesPeer(t *testing.T) {
	move := func(c *Config) { c.Peers[1].Address = "127.0.0.1:2" }
	t.Run("idle", func(t *testing.T) {
		e := testEngine(t, "b", "a", "b", "c")
		connect(t, e.peers["c"])
		reloaded(t, e, move)
		e.tick(time.Now())
		if p := e.peers["c"]; p.link != nil || p.addr != "127.0.0.1:2" {
			t.Errorf("connected to %s still", p.addr)
		}
	})
	t.Run("in use", func(t *testing.T) {
		e := testEngine(t, "b", "a", "b", "c")
		a, _ := testApplication(t, e)
		connect(t, e.peers["c"])
		begin := time.Now()
		e.startSource(a, located1(a, 1).status, "c", func(Moved) {})
		reloaded(t, e, move)
		p := e.peers["c"]
		p.settle(begin.Add(e.times.Limit))
		if p.link == nil {
			t.Fatal("the connection has gone before the move")
		}
		p.settle(time.Now().Add(e.times.Limit + e.times.Grace))
		if p.link != nil {
			t.Error("the connection to the old address stays for ever")
		}
		connect(t, p)
		p.settle(time.Now().Add(time.Hour))
		if p.link == nil {
			t.Error("the new connection is closed, too")
		}
	})
	t.Run("being connected", func(t *testing.T) {
		e := testEngine(t, "b", "a", "b", "c")
		old, other := newDoor(t), newDoor(t)
		p := e.peers["c"]
		p.dialing, p.addr = false, old.Addr().String()
		p.dial()
		if conn, err := old.Accept(); err == nil { // it does not answer: the dialler has to wait
			defer conn.Close()
			if err := e.reload(changed(t, e, func(c *Config) { c.Peers[1].Address = other.Addr().String() })); err != nil {
				t.Fatal(err)
			}
		}
		_ = old.Close()
		conn := make(chan net.Conn, 1)
		go func() {
			if c, err := other.Accept(); err == nil {
				conn <- c
			}
		}()
		limit := time.After(10 * time.Second)
		for {
			select {
			case ev := <-e.events:
				ev(e)
				continue
			case c := <-conn:
				_ = c.Close()
			case <-limit:
				t.Error("nobody connects to the new address")
			}
			break
		}
		close(e.stopped)
	})
}

func newDoor(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// TestReloadRemovesSource removes a host that moves a connection here: what it has begun goes on, for as long as a move may take.
func TestReloadRemovesSource(t *testing.T) {
	e := testEngine(t, "b", "a", "b", "c")
	near, far := net.Pipe()
	in := &incoming{e: e, name: "c", link: wire.NewLink(near), heard: time.Now()}
	link := wire.NewLink(far)
	defer link.Close()
	e.incoming[in] = struct{}{}
	m := migration.NewTarget(migration.TargetParams{Host: "a", Epoch: 1}, e.times)
	tg := &target{e: e, id: 1, machine: m, flow: testFlow(1), service: "s", epoch: 1, entry: "b", from: in}
	e.targets[1], e.taking[tg.flow] = tg, tg
	m.Step(time.Now(), migration.Event{Kind: migration.Start})
	reloaded(t, e, without("c"))

	late := time.Now().Add(e.times.Limit + e.times.Grace)
	in.settle(time.Now())
	e.request(in, wire.Frame{ID: 2, Message: &wire.Offer{Flow: testFlow(2), Service: "s", Epoch: 1}})
	e.flush()
	f, _, err := link.Receive()
	if r, ok := f.Message.(*wire.Refuse); err != nil || !ok || !strings.Contains(r.Reason, "no peer") {
		t.Errorf("an offer is answered with %+v, %v", f.Message, err)
	}
	in.settle(late)
	if e.targets[1] == nil || len(e.incoming) != 1 {
		t.Fatal("the move was given up")
	}
	e.request(in, wire.Frame{ID: 1, Message: &wire.Cancel{}})
	in.settle(late)
	if len(e.targets)+len(e.incoming) != 0 {
		t.Error("the connection stays")
	}
}

// TestReloadTellsPresence makes this host a server of an entry while it is being drained.
func TestReloadTellsPresence(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	e.draining = true
	link := connect(t, e.peers["c"])
	reloaded(t, e, func(c *Config) {
		c.Services = append(c.Services, ServiceConfig{
			Name: "c", Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.9.9.8:80")}, Entry: "c", Servers: []string{"a"},
		})
	})
	e.flush()
	f, _, err := link.Receive()
	if m, ok := f.Message.(*wire.Presence); err != nil || !ok || !m.Draining {
		t.Errorf("the new entry hears %+v, %v", f.Message, err)
	}
}

// TestReloadFile reads a file that is wrong, one that is missing, and none.
func TestReloadFile(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	done := make(chan error, 1)
	go func() { done <- e.run(t.Context()) }()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := yaml.Marshal(e.cfg)
	if err != nil {
		t.Fatal(err)
	}
	a := New(e.cfg, e.log)
	a.engine = e
	close(a.up)
	if err := a.ReloadFile(); !errors.Is(err, ErrNoFile) {
		t.Errorf("without a file: %v", err)
	}
	a.SetFile(path)
	var wrong *ConfigError
	if err := a.ReloadFile(); !errors.As(err, &wrong) {
		t.Errorf("no file: %v", err)
	}
	write("hots: a\n")
	if err := a.ReloadFile(); !errors.As(err, &wrong) || !strings.Contains(err.Error(), path) {
		t.Errorf("a wrong file: %v", err)
	}
	var restart *RestartError
	write(strings.Replace(string(raw), "host: a", "host: a\nmetrics: 127.0.0.1:1", 1))
	if err := a.ReloadFile(); err == nil {
		t.Error("a key that stands twice is accepted")
	}
	write(strings.Replace(string(raw), `metrics: ""`, "metrics: 127.0.0.1:1", 1))
	if err := a.ReloadFile(); !errors.As(err, &restart) {
		t.Errorf("a file that needs a restart: %v", err)
	}
	write(strings.Replace(string(raw), "concurrency: 64", "concurrency: 65", 1))
	if err := a.ReloadFile(); err != nil {
		t.Error(err)
	}
	got := 0
	e.ask(t.Context(), func(e *engine) { got = e.cfg.Migration.Concurrency })
	if got != 65 {
		t.Errorf("concurrency is %d", got)
	}
	if err := a.Reload(changed(t, e, func(c *Config) { c.Migration.Concurrency = 66 })); err != nil || e.shared.Load().cfg.Migration.Concurrency != 66 {
		t.Errorf("%v", err)
	}
}

// TestReloadTooLate reloads an agent that has ended, or ends.
func TestReloadTooLate(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	cfg := e.cfg
	a := New(cfg, e.log)
	close(a.over)
	if err := a.Reload(cfg); !errors.Is(err, ErrStopped) {
		t.Errorf("after an end: %v", err)
	}
	a = New(cfg, e.log)
	a.engine = e
	close(a.up)
	close(e.stopped)
	if err := a.Reload(cfg); !errors.Is(err, ErrStopped) {
		t.Errorf("at the end: %v", err)
	}
	e.stopping = true
	if err := e.reload(cfg); !errors.Is(err, ErrStopped) {
		t.Errorf("while it ends: %v", err)
	}
}
