// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// memoryFlow is what a memoryPath has of a flow.
type memoryFlow struct {
	node                            gate.Node
	epoch                           uint32
	undecided, inspected, secondary bool
}

// memoryPath is a packet path in memory: what package forward's documentation says of its table, for one packet at a time.
type memoryPath struct {
	handled   map[endpoint]forward.Handling
	flows     map[session.Key]*memoryFlow
	announced map[session.Key]forward.Announcement
	// log has what was done, in order.
	log []string
	// full and broken are what Announce and Assign answer with.
	full, broken error
	// busy is the opposite of Idle.
	busy bool
}

func newMemoryPath() *memoryPath {
	return &memoryPath{
		handled: make(map[endpoint]forward.Handling), flows: make(map[session.Key]*memoryFlow), announced: make(map[session.Key]forward.Announcement),
	}
}

func (m *memoryPath) Announce(list ...forward.Announcement) error {
	for _, a := range list {
		if m.full != nil {
			return m.full
		}
		k := session.Key{Client: a.Client, Server: a.Server, Protocol: a.Protocol}
		if f := m.flows[k]; f != nil && f.node != a.Node {
			delete(m.flows, k)
		}
		m.announced[k] = a
		m.log = append(m.log, "announce "+k.String())
	}
	return nil
}

func (m *memoryPath) Withdraw(list ...forward.Announcement) error {
	for _, a := range list {
		delete(m.announced, session.Key{Client: a.Client, Server: a.Server, Protocol: a.Protocol})
	}
	return nil
}

func (m *memoryPath) Assign(protocol uint8, f tcprepair.Flow, n gate.Node, inspect bool) (gate.RouteInfo, error) {
	k := keyOf(protocol, f)
	v := m.flows[k]
	switch {
	case m.broken != nil:
		return gate.RouteInfo{}, m.broken
	case v == nil:
		return gate.RouteInfo{}, gate.ErrNoFlow
	case !v.undecided:
		return gate.RouteInfo{Node: v.node}, gate.ErrExists
	}
	*v = memoryFlow{node: n, epoch: 2, inspected: inspect}
	return gate.RouteInfo{Node: n}, nil
}

func (m *memoryPath) Locate(protocol uint8, f tcprepair.Flow) (gate.RouteInfo, error) {
	v := m.flows[keyOf(protocol, f)]
	if v == nil {
		return gate.RouteInfo{}, gate.ErrNoFlow
	}
	return gate.RouteInfo{Node: v.node, Epoch: v.epoch}, nil
}

func (m *memoryPath) Switch(protocol uint8, f tcprepair.Flow, from uint32, to gate.Node) (gate.RouteInfo, error) {
	v := m.flows[keyOf(protocol, f)]
	switch {
	case v == nil:
		return gate.RouteInfo{}, gate.ErrNoFlow
	case v.epoch != from:
		return gate.RouteInfo{Node: v.node, Epoch: v.epoch}, gate.ErrEpoch
	}
	v.node, v.epoch = to, from+1
	return gate.RouteInfo{Node: to, Epoch: v.epoch}, nil
}

func (m *memoryPath) Detour(protocol uint8, f tcprepair.Flow, on bool) error {
	v := m.flows[keyOf(protocol, f)]
	if v == nil {
		return gate.ErrNoFlow
	}
	v.inspected = on
	return nil
}

func (m *memoryPath) Idle() bool { return !m.busy }

func (m *memoryPath) Drop(protocol uint8, f tcprepair.Flow) error {
	delete(m.flows, keyOf(protocol, f))
	return nil
}

func (m *memoryPath) Send(p packet, to gate.Node) error {
	m.log = append(m.log, "send "+keyOf(p.Protocol, p.Flow).String())
	if v := m.flows[keyOf(p.Protocol, p.Flow)]; v != nil && v.node != to {
		m.log = append(m.log, "astray")
	}
	return nil
}

func (m *memoryPath) Handle(protocol uint8, at netip.AddrPort, h forward.Handling) error {
	m.handled[endpoint{protocol, at}] = h
	return nil
}

func (m *memoryPath) Unhandle(protocol uint8, at netip.AddrPort) error {
	delete(m.handled, endpoint{protocol, at})
	return nil
}

func (m *memoryPath) Divert(ctx context.Context, _ func(packet)) error { <-ctx.Done(); return nil }
func (m *memoryPath) Watch(ctx context.Context, _ func(forward.Event)) error {
	<-ctx.Done()
	return nil
}

func (m *memoryPath) Scan(forward.Cursor, []forward.Known) (int, forward.Cursor, error) {
	return 0, 0, nil
}

// sessionStand is a dispatcher's sessions over a memoryPath, with two servers.
type sessionStand struct {
	*sessions
	t    *testing.T
	path *memoryPath
	next map[session.Key]uint32 // the clients' sequence numbers
}

const (
	stranger = "192.0.2.7"
	somebody = "192.0.2.8"
)

func vip(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("203.0.113.10"), port)
}

// sessionConfig has one service of each mode, and one of datagrams that b2 alone serves.
func sessionConfig(t *testing.T) Config {
	t.Helper()
	cfg := standing(t)
	cfg.Gateways = []string{"gw"}
	cfg.Pools = []PoolConfig{
		{Name: "both", Delivery: DeliveryUnmodified, Backends: []BackendConfig{{Host: "b1"}, {Host: "b2"}}},
		{Name: "second", Delivery: DeliveryUnmodified, Backends: []BackendConfig{{Host: "b2"}}},
	}
	cfg.Services = nil
	for _, v := range []struct {
		mode Mode
		port uint16
		pool string
	}{{ModeRTSP, 554, "both"}, {ModeSIP, 5060, "both"}, {ModeFTP, 21, "both"}, {ModeUDP, 53, "both"}, {ModeUDP, 54, "second"}, {ModeTCP, 443, "both"}} {
		cfg.Services = append(cfg.Services, ServiceConfig{
			Name: string(v.mode) + v.pool, Mode: v.mode, Addresses: []netip.AddrPort{vip(v.port)}, Default: v.pool,
		})
	}
	return cfg
}

func newSessionStand(t *testing.T) *sessionStand {
	t.Helper()
	s := &sessionStand{t: t, path: newMemoryPath(), next: make(map[session.Key]uint32)}
	s.begin(sessionConfig(t))
	return s
}

// begin starts anew over the same path, as after a kill.
func (s *sessionStand) begin(cfg Config) {
	s.t.Helper()
	d := New(valid(s.t, cfg), slog.New(slog.DiscardHandler))
	p, err := d.compile(d.cfg, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, b := range p.backends {
		b.link = new(wire.Link) // it counts as up, and nothing is sent
	}
	for _, v := range p.services {
		v.take()
	}
	d.live.Store(p)
	if s.sessions, err = newSessions(d, s.path); err != nil {
		s.t.Fatal(err)
	}
	d.sessions = s.sessions
	if err := s.handle(p, nil); err != nil {
		s.t.Fatal(err)
	}
}

func tcpKey(client string, port, service uint16) session.Key {
	return session.Key{Client: netip.AddrPortFrom(netip.MustParseAddr(client), port), Server: vip(service), Protocol: unix.IPPROTO_TCP}
}

func udpKey(client string, port, service uint16) session.Key {
	k := tcpKey(client, port, service)
	k.Protocol = unix.IPPROTO_UDP
	return k
}

// packet takes a packet the way that the kernel takes it, and returns the node that it came to; 0: none.
func (s *sessionStand) packet(k session.Key, flags uint8, sequence uint32, text string) gate.Node {
	s.t.Helper()
	f := s.path.flows[k]
	anew := f == nil || flags == tcpSYN
	if anew {
		if a, ok := s.promised(k); ok {
			f = &memoryFlow{node: a.Node, epoch: 1, secondary: true, inspected: a.Inspect}
			s.path.flows[k] = f
			s.began(forward.Event{Flow: flowOf(k), Protocol: k.Protocol, Node: a.Node, Client: a.Client, Server: a.Server})
			anew = false
		}
	}
	if anew {
		h, ok := s.path.handled[endpoint{k.Protocol, k.Server}]
		if !ok || !h.Divert {
			return 0
		}
		f = &memoryFlow{undecided: true, epoch: 1}
		s.path.flows[k] = f
	}
	d := forward.Diverted{Flow: flowOf(k), Protocol: k.Protocol, Node: f.node, Payload: []byte(text), Reason: forward.Inspected}
	switch {
	case f.undecided:
		d.Reason = forward.Undecided
	case !f.inspected:
		return f.node // it takes the short way
	}
	sent := len(s.path.log)
	s.decide(packet{Diverted: d, sequence: sequence, flags: flags})
	for _, line := range s.path.log[sent:] {
		if line == "astray" {
			s.t.Errorf("a packet of %v went to another server than its flow", k)
		}
		if strings.HasPrefix(line, "send ") {
			if f := s.path.flows[k]; f != nil {
				return f.node
			}
		}
	}
	return 0
}

func (s *sessionStand) promised(k session.Key) (forward.Announcement, bool) {
	for _, open := range []session.Key{k, {Client: anyPort(k.Client), Server: k.Server, Protocol: k.Protocol}, {Client: k.Client, Server: anyPort(k.Server), Protocol: k.Protocol}} {
		if a, ok := s.path.announced[open]; ok {
			delete(s.path.announced, open)
			return a, true
		}
	}
	return forward.Announcement{}, false
}

func anyPort(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 0) }

// connect sends a SYN.
func (s *sessionStand) connect(k session.Key) gate.Node {
	s.t.Helper()
	s.next[k] = 4294967290 // it wraps soon
	n := s.packet(k, tcpSYN, s.next[k], "")
	s.next[k]++
	return n
}

// say sends a segment, or a datagram.
func (s *sessionStand) say(k session.Key, text string) gate.Node {
	s.t.Helper()
	n := s.packet(k, 0, s.next[k], text)
	s.next[k] += uint32(len(text))
	return n
}

// answer reports what a server has said on a flow.
func (s *sessionStand) answer(k session.Key, m Mode, text string) error {
	s.t.Helper()
	e := gateway.Signalling(gateway.Mode(m), k)
	var halves []inspect.Half
	for _, b := range e.Parse([]byte(text)) {
		h, err := inspect.Decode(b)
		if err != nil {
			s.t.Fatal(err)
		}
		halves = append(halves, h)
	}
	if len(halves) == 0 {
		s.t.Fatalf("nothing is to be read in %q", text)
	}
	return s.install(s.t.Context(), gateway.Said{Gateway: "gw", Flow: k, Halves: halves})
}

// active checks how many sessions the servers have.
func (s *sessionStand) active(b1, b2 int64) {
	s.t.Helper()
	if x, y := s.d.backend("b1").active.Load(), s.d.backend("b2").active.Load(); x != b1 || y != b2 {
		s.t.Errorf("b1 has %d sessions and b2 %d, want %d and %d", x, y, b1, b2)
	}
}

// empty checks that nothing is left of any session.
func (s *sessionStand) empty() {
	s.t.Helper()
	if len(s.signalling) > 0 || len(s.pairs) > 0 {
		s.t.Errorf("left: %d parsers, %d pairs", len(s.signalling), len(s.pairs))
	}
	if found, _ := s.table.Scan(0, 1000, nil); len(found) > 0 {
		s.t.Errorf("left: %v", found)
	}
	s.active(0, 0)
}

// purge lets time pass.
func (s *sessionStand) purge(after time.Duration) {
	now := time.Now().Add(after)
	for range 3 {
		s.warn(s.perform(now, s.table.Purge(now, purgeFlows, nil)))
	}
}
