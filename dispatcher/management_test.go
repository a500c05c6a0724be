// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
)

// seenTable is a table that refuses what admission wants, and shows its flows.
type seenTable struct {
	table
	refuses map[endpoint]forward.Admission
	known   []forward.Known
	blind   error
}

func (s *seenTable) SetAdmission(protocol uint8, at netip.AddrPort, a forward.Admission) error {
	s.refuses[endpoint{protocol, at}] = a
	return nil
}

// Scan gives three flows at a time.
func (s *seenTable) Scan(at forward.Cursor, into []forward.Known) (int, forward.Cursor, error) {
	n := copy(into, s.known[at:min(int(at)+3, len(s.known))])
	next := at + forward.Cursor(n)
	if int(next) == len(s.known) {
		next = 0
	}
	return n, next, s.blind
}

// managed returns a dispatcher with reports, that does not run, over a seenTable.
func managed(t *testing.T, change func(*Config)) (*Dispatcher, *seenTable) {
	t.Helper()
	cfg := sessionConfig(t)
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("1 * "+strings.Repeat("ab", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Reports = ReportsConfig{Keys: keys, Listen: "127.0.0.1:0"}
	change(&cfg)
	d := New(valid(t, cfg), slog.New(slog.DiscardHandler))
	path := &seenTable{refuses: make(map[endpoint]forward.Admission)}
	d.path = path
	var err error
	if d.management, err = newManagement(d); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.management.monitor.Close() })
	p, err := d.compile(d.cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range p.backends {
		b.link = new(wire.Link)
	}
	for _, s := range p.services {
		s.take()
	}
	d.live.Store(p)
	d.management.watch(p)
	return d, path
}

func report(d *Dispatcher, name string, loads ...float64) {
	for _, l := range loads {
		d.management.reported(uint32(d.backend(name).node), load.Sample{Load: l})
	}
}

func available(d *Dispatcher, name string, s availability.State) {
	d.management.changed(availability.Event{Host: uint32(d.backend(name).node), To: s})
}

// TestJudge holds what policies of balancing see of reports.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		state availability.State
		bound int
		want  balance.Backend
	}{
		{availability.Unknown, 0, balance.Backend{}},
		{availability.Up, 0, balance.Backend{}},
		{availability.Up, 6, balance.Backend{}},
		{availability.Up, 5, balance.Backend{Drained: true}},
		{availability.Draining, 0, balance.Backend{Drained: true}},
		{availability.ApplicationDown, 0, balance.Backend{Down: true}},
		{availability.Down, 0, balance.Backend{Down: true}},
	} {
		t.Run(fmt.Sprintf("%v, at most %d", tt.state, tt.bound), func(t *testing.T) {
			d, _ := managed(t, func(*Config) {})
			b := d.backend("b1")
			d.management.decision.Store(&admission.Decision{Connections: tt.bound})
			available(d, "b1", tt.state)
			report(d, "b1", 0.5, 0.5)
			b.active.Store(5)
			want := tt.want
			want.Active, want.Load, want.Report, want.Weight, want.Name = 5, 0.5, 2, 1, "b1"
			got := d.live.Load().pools["both"].members[0].view(nil)
			got.Load = math.Round(got.Load*1e9) / 1e9
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestVitals follows one backend's reports, their failure, and its leaving.
func TestVitals(t *testing.T) {
	d, _ := managed(t, func(*Config) {})
	m, node := d.management, d.backend("b1").node
	available(d, "b1", availability.Up)
	report(d, "b1", 0.2, 0.4, 0.6)
	if v := m.of(node); !v.known || v.report != 3 || v.load < 0.6 || v.load > 1 {
		t.Errorf("%+v, want three reports and a load that rises", v)
	}
	report(d, "b2", 0.1)
	if l := m.loads(); len(l.Nodes) != 1 {
		t.Errorf("loads of %d nodes, want that of b1 alone: nobody knows whether b2 is there", len(l.Nodes))
	}
	available(d, "b2", availability.Draining) // it serves those that it has
	if l := m.loads(); len(l.Nodes) != 2 {
		t.Errorf("loads of %d nodes, want 2", len(l.Nodes))
	}
	left := *d.live.Load()
	left.backends = maps.Clone(left.backends)
	delete(left.backends, "b1")
	m.watch(&left)
	if v := m.of(node); v != (vital{}) {
		t.Errorf("of a host that has left %+v is known", v)
	}
	report(d, "b1", math.NaN())
	if v := m.of(node); v.known {
		t.Errorf("a load that is no number is known: %+v", v)
	}
}

// TestHeadLoad holds that a full flow table is the head's full load.
func TestHeadLoad(t *testing.T) {
	d, path := managed(t, func(*Config) {})
	path.stats.Pressure = tablePressure / 2
	if got := d.management.loads().Head; got != 0.5 {
		t.Errorf("load %v, want 0.5", got)
	}
}

// TestEnforce holds where what is refused: in the packet path, or where clients can be told.
func TestEnforce(t *testing.T) {
	web, told := vip(80), vip(81)
	for _, tt := range []struct {
		name       string
		retryAfter time.Duration
		want       forward.Admission // at the service of HTTP
	}{
		{"dropped", 0, forward.Admission{New: 1}},
		{"told", time.Second, forward.Admission{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, path := managed(t, func(cfg *Config) {
				cfg.Admission = AdmissionConfig{Policy: admission.Static, RetryAfter: tt.retryAfter}
				cfg.Services = append(cfg.Services,
					ServiceConfig{Name: "web", Mode: ModeHTTP, Addresses: []netip.AddrPort{web}, Default: "both"},
					ServiceConfig{Name: "socketless", Mode: ModeHTTP, Addresses: []netip.AddrPort{told}, Default: "both", Socketless: true})
			})
			path.refuses[endpoint{unix.IPPROTO_TCP, web}] = forward.Admission{New: 0.5} // what was before a restart
			decided := admission.Decision{New: 1, Established: 0.25}
			d.management.decision.Store(&decided)
			d.management.enforce(decided)
			both := forward.Admission{New: 1, Established: 0.25}
			want := map[endpoint]forward.Admission{
				{unix.IPPROTO_TCP, web}: tt.want, {unix.IPPROTO_TCP, vip(443)}: {New: 1},
				{unix.IPPROTO_TCP, vip(554)}: both, {unix.IPPROTO_TCP, vip(21)}: both, {unix.IPPROTO_TCP, vip(5060)}: both,
				{unix.IPPROTO_UDP, vip(5060)}: both, {unix.IPPROTO_UDP, vip(53)}: both, {unix.IPPROTO_UDP, vip(54)}: both,
			}
			if !maps.Equal(want, path.refuses) {
				t.Errorf("the path refuses %v, want %v", path.refuses, want)
			}
			live := d.live.Load()
			for at, want := range map[netip.AddrPort]bool{web: tt.retryAfter == 0, told: false, vip(443): true} {
				if got := d.admits(live.at[at], &peek.Key{}); got != want {
					t.Errorf("%v: a request is taken: %t, want %t", at, got, want)
				}
			}
			d.management.enforce(admission.Decision{})
			for e, a := range path.refuses {
				if a != (forward.Admission{}) {
					t.Errorf("%v: refuses %v after all", e, a)
				}
			}
		})
	}
}

// TestDownAbandons ends a server's sessions when its heartbeats do, and not when they were only late.
func TestDownAbandons(t *testing.T) {
	s := newSessionStand(t)
	d, _ := managed(t, func(*Config) {})
	s.d.management = d.management
	d.management.d = s.d
	group := new(errgroup.Group)
	for port := range uint16(10) {
		s.connect(tcpKey(stranger, 1000+port, 554))
	}
	m, buried := d.management, make(map[*watched]time.Time)
	for _, state := range []availability.State{availability.Up, availability.Draining, availability.ApplicationDown} {
		available(s.d, "b1", state)
	}
	if next := m.abandon(time.Now().Add(time.Hour), buried); next != 0 {
		t.Errorf("waits %v for nobody", next)
	}
	available(s.d, "b1", availability.Down)
	if next := m.abandon(time.Now(), buried); next <= 0 || next > abandonAfter {
		t.Errorf("waits %v, want %v", next, abandonAfter)
	}
	available(s.d, "b1", availability.Up) // it was only late
	m.abandon(time.Now().Add(time.Hour), buried)
	s.active(5, 5)

	ctx, cancel := context.WithCancel(t.Context())
	group.Go(func() error { return m.bury(ctx) })
	available(s.d, "b1", availability.Down)
	for deadline := time.Now().Add(limit); len(m.fell) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody looks")
		}
	}
	cancel() // the dispatcher does not end before it has
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	s.active(0, 5)
}

// stuck is a log that nobody reads.
type stuck struct{ release chan struct{} }

func (s stuck) Write(b []byte) (int, error) {
	<-s.release
	return len(b), nil
}

// TestMonitorWaitsForNobody: with a log that is blocked, what hosts say is taken in by the monitor's thread without delay, and all of it can be seen.
func TestMonitorWaitsForNobody(t *testing.T) {
	d, _ := managed(t, func(*Config) {})
	log := stuck{make(chan struct{})}
	d.log = slog.New(slog.NewTextHandler(log, nil))
	m, node := d.management, d.backend("b1").node
	ctx, cancel := context.WithCancel(t.Context())
	var group errgroup.Group
	group.Go(func() error { return m.tell(ctx) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 2 * newsRoom {
			available(d, "b1", availability.Up)
			available(d, "b1", availability.Down)
			report(d, "b1", 0.5)
		}
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Error("the monitor's thread waits for the log")
	}
	if v := m.of(node); v.state != availability.Down || v.report != 2*newsRoom {
		t.Errorf("%+v is known", v)
	}
	if m.unsaid.Load() == 0 {
		t.Error("what is not in the log is not counted")
	}
	cancel()
	close(log.release)
	<-done
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// hot returns a dispatcher that sheds, with b1 at full load, b2 and b3 idle, and four connections of b1's: of a service of linked servers at b1 and
// b2, and one that cannot move.
func hot(t *testing.T) (*Dispatcher, *seenTable) {
	t.Helper()
	d, path := managed(t, func(cfg *Config) {
		cfg.Shedding = SheddingConfig{Enabled: true, Stay: time.Minute}
		cfg.Peers = append(cfg.Peers, PeerConfig{Name: "b3", Address: free(t).String()})
		cfg.Pools = append(cfg.Pools, PoolConfig{Name: "linked", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}, {Host: "b2"}}})
		cfg.Services = append(cfg.Services, ServiceConfig{Name: "files", Mode: ModeTCP, Addresses: []netip.AddrPort{vip(80)}, Default: "linked"})
	})
	for name, l := range map[string]float64{"b1": 1, "b2": 0.3, "b3": 0.1} {
		available(d, name, availability.Up)
		report(d, name, l, l)
	}
	node := d.backend("b1").node
	for port := range uint16(4) {
		path.known = append(path.known, forward.Known{Flow: flowOf(tcpKey(stranger, 1000+port, 80)), Protocol: unix.IPPROTO_TCP, Node: node, Epoch: 2})
	}
	path.known = append(path.known,
		forward.Known{Flow: flowOf(tcpKey(stranger, 2000, 443)), Protocol: unix.IPPROTO_TCP, Node: node, Epoch: 2},
		forward.Known{Flow: flowOf(tcpKey(stranger, 2001, 80)), Protocol: unix.IPPROTO_TCP, Node: node, Epoch: 2, Fresh: true},
		forward.Known{Flow: flowOf(tcpKey(stranger, 2002, 80)), Protocol: unix.IPPROTO_TCP, Node: node, Epoch: 2, Closing: true},
		forward.Known{Flow: flowOf(udpKey(stranger, 2003, 53)), Protocol: unix.IPPROTO_UDP, Node: node, Epoch: 2},
		forward.Known{Flow: flowOf(tcpKey(stranger, 2004, 80)), Protocol: unix.IPPROTO_TCP, Node: 0, Epoch: 1})
	return d, path
}

// planned returns what the policy moves within a second.
func planned(t *testing.T, s *shedding, now time.Time) (moves []load.Move) {
	t.Helper()
	for _, at := range []time.Time{now, now.Add(load.DefaultHold)} {
		servers, _ := s.servers()
		if err := s.fill(at, servers); err != nil {
			t.Fatal(err)
		}
		moves = append(moves, s.shedder.Plan(at, servers)...)
	}
	return moves
}

// TestSheddingFill holds which connections may move, and where.
func TestSheddingFill(t *testing.T) {
	d, _ := hot(t)
	s := d.management.shedder
	servers, isHot := s.servers()
	if !isHot || len(servers) != 3 {
		t.Fatalf("hot %t, %d servers", isHot, len(servers))
	}
	if err := s.fill(time.Now(), servers); err != nil {
		t.Fatal(err)
	}
	movable := 0
	for _, v := range servers {
		for _, c := range v.Sessions {
			if v.Host != uint32(d.backend("b1").node) {
				t.Errorf("host %d has %v", v.Host, s.moving[c.ID])
			}
			if !c.Fixed {
				movable++
				if want := []uint32{uint32(d.backend("b1").node), uint32(d.backend("b2").node)}; !slices.Equal(c.To, want) {
					t.Errorf("it can go to %v, want %v", c.To, want)
				}
			}
		}
	}
	if movable != 4 || len(s.moving) != 7 {
		t.Errorf("%d of %d connections may move, want 4 of 7", movable, len(s.moving))
	}
	moves := planned(t, s, time.Now())
	if len(moves) == 0 {
		t.Fatal("nothing moves")
	}
	for _, m := range moves {
		if m.To != uint32(d.backend("b2").node) {
			t.Errorf("moved to host %d, which does not serve it", m.To)
		}
	}
}

// TestSheddingTakes holds who is given connections.
func TestSheddingTakes(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(d *Dispatcher)
	}{
		{"its agent is away", func(d *Dispatcher) { d.backend("b2").link = nil }},
		{"its own wish", func(d *Dispatcher) { d.backend("b2").draining.Store(true) }},
		{"an operator's wish", func(d *Dispatcher) { d.live.Load().pools["linked"].members[1].set(nil, new(true), nil, time.Now()) }},
		{"it has announced its end", func(d *Dispatcher) { available(d, "b2", availability.Draining) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, _ := hot(t)
			tt.spoil(d)
			if moves := planned(t, d.management.shedder, time.Now()); len(moves) > 0 {
				t.Errorf("moves %v", moves)
			}
		})
	}
}

// TestSheddingStay leaves a connection that has moved where it is for a while, and knows it by another number.
func TestSheddingStay(t *testing.T) {
	d, path := hot(t)
	s := d.management.shedder
	now := time.Now()
	k := path.known[0]
	first := identity(k)
	if again := identity(k); again != first || first&shedBit != 0 {
		t.Errorf("the numbers %x and %x of one flow", first, again)
	}
	k.Idle, k.Packets = time.Hour, 7
	if identity(k) != first {
		t.Error("a flow's packets change its number")
	}
	k.Epoch = 3
	if identity(k) == first {
		t.Error("a flow that has moved has its old number")
	}
	for i := range path.known {
		path.known[i].Epoch = 3
	}
	if moves := planned(t, s, now); len(moves) > 0 {
		t.Errorf("moves %v, which have just come", moves)
	}
	if moves := planned(t, s, now.Add(30*time.Second)); len(moves) > 0 {
		t.Errorf("moves %v before their time", moves)
	}
	if moves := planned(t, s, now.Add(2*time.Minute)); len(moves) == 0 {
		t.Error("they stay for ever")
	}
	path.known = path.known[:1]
	servers, _ := s.servers()
	if err := s.fill(now, servers); err != nil || len(s.arrived) != 1 {
		t.Errorf("%d arrivals are remembered of one flow: %v", len(s.arrived), err)
	}
}

// TestSheddingRefused tries another time what an agent has refused, or has not been asked.
func TestSheddingRefused(t *testing.T) {
	d, path := hot(t)
	path.known = path.known[:1]
	s := d.management.shedder
	now := time.Now()
	for port := range uint16(3) {
		k := path.known[0]
		k.Flow = flowOf(tcpKey(stranger, 3000+port, 80))
		path.known = append(path.known, k)
	}
	report(d, "b2", 0, 0, 0, 0, 0, 0, 0, 0)
	moves := planned(t, s, now)
	if len(moves) == 0 {
		t.Fatal("nothing moves")
	}
	d.backend("b1").link = nil
	for i, m := range moves {
		if i%2 == 0 {
			s.order(m) // its agent is away
		} else {
			s.refused(m.Session | shedBit)
		}
	}
	s.learn()
	d.backend("b1").link = new(wire.Link)
	servers, _ := s.servers()
	at := now.Add(load.DefaultHold + time.Millisecond)
	if err := s.fill(at, servers); err != nil {
		t.Fatal(err)
	}
	if again := s.shedder.Plan(at, servers); len(again) != len(moves) {
		t.Errorf("%d moves after %d have failed", len(again), len(moves))
	}
	for range 2 * shedFlows { // more than there is room for: it must not wait
		s.refused(1)
	}
	s.learn()
	path.blind = gate.ErrClosed
	s.shed(at) // it says so, and goes on
}
