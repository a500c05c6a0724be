// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/admission"
	"github.com/rehome-net/rehome/dispatcher/synproxy"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// memoryProxy is a proxy in memory.
type memoryProxy struct {
	services map[netip.AddrPort]bool
	returned []tcprepair.Flow
	forgot   error
}

func (m *memoryProxy) AddService(at netip.AddrPort) error    { m.services[at] = true; return nil }
func (m *memoryProxy) RemoveService(at netip.AddrPort) error { delete(m.services, at); return nil }
func (m *memoryProxy) SetParameters(cookie.Parameters) error { return nil }
func (m *memoryProxy) Run(ctx context.Context) error         { <-ctx.Done(); return nil }
func (m *memoryProxy) Close() error                          { return nil }

func (m *memoryProxy) Services() (all []netip.AddrPort, err error) {
	for a := range m.services {
		all = append(all, a)
	}
	return all, nil
}

func (m *memoryProxy) Return(f tcprepair.Flow) error {
	m.returned = append(m.returned, f)
	return m.forgot
}

// socketlessStand is a dispatcher with a socketless service at vip(80), whose backends make connections.
func socketlessStand(t *testing.T, change func(*Config)) (*socketless, *memoryProxy) {
	t.Helper()
	d, _ := managed(t, func(cfg *Config) {
		cfg.Admission = AdmissionConfig{Policy: admission.Static, RetryAfter: time.Second}
		cfg.Pools = append(cfg.Pools, PoolConfig{Name: "linked", Delivery: DeliveryLinked, Backends: []BackendConfig{{Host: "b1"}}})
		cfg.Services = append(cfg.Services, ServiceConfig{
			Name: "web", Mode: ModeHTTP, Addresses: []netip.AddrPort{vip(80)}, Socketless: true, Default: "both",
			Routes: []RouteConfig{{Host: "linked.example", Pool: "linked"}}, Limits: LimitsConfig{Connections: 2},
		}, ServiceConfig{Name: "tls", Mode: ModeTLS, Addresses: []netip.AddrPort{vip(8443)}, Socketless: true, Default: "both"})
		change(cfg)
	})
	p := &memoryProxy{services: make(map[netip.AddrPort]bool)}
	d.socketless = &socketless{d: d, proxy: p, refused: make(map[tcprepair.Flow]refusals)}
	for _, b := range d.live.Load().hosts {
		b.socketless = d.socketless
		b.cookies.Store(true)
		b.hear()
	}
	return d.socketless, p
}

const (
	getX   = "GET / HTTP/1.1\r\nHost: x.example\r\n\r\n"
	getOwn = "GET / HTTP/1.1\r\nHost: linked.example\r\n\r\n"
)

func asks(text string) synproxy.Request {
	return synproxy.Request{Flow: flowOf(tcpKey(stranger, 1000, 80)), Bytes: []byte(text), Since: time.Now()}
}

// counts returns how many connections the service and each backend have.
func (s *socketless) counts() [3]int64 {
	live := s.d.live.Load()
	return [3]int64{live.at[vip(80)].active.Load(), s.d.backend("b1").active.Load(), s.d.backend("b2").active.Load()}
}

// TestSocketlessDecide holds which requests go to backends, and which the way of sockets.
func TestSocketlessDecide(t *testing.T) {
	ended := func(text string) synproxy.Request {
		q := asks(text)
		q.Ended = true
		return q
	}
	unserved := asks(getX)
	unserved.Flow = flowOf(tcpKey(stranger, 1000, 9999))
	sealed := asks("\x16\x03\x01")
	sealed.Flow = flowOf(tcpKey(stranger, 1000, 8443))
	hello := asks("GET /")
	hello.Flow = sealed.Flow
	for _, tt := range []struct {
		name  string
		q     synproxy.Request
		spoil func(s *socketless)
		want  synproxy.Verb
	}{
		{"a request", asks(getX), nil, synproxy.Forward},
		{"half of one", asks(getX[:20]), nil, synproxy.Wait},
		{"half, and no more comes", ended(getX[:20]), nil, synproxy.Local},
		{"another protocol", asks("\x00\x01\x02\x03\r\n\r\n"), nil, synproxy.Local},
		{"larger than it may be", asks("GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 20000)), nil, synproxy.Local},
		{"another delivery", asks(getOwn), nil, synproxy.Local},
		{"no service any more", unserved, nil, synproxy.Local},
		{"the beginning of TLS", sealed, nil, synproxy.Wait},
		{"no TLS", hello, nil, synproxy.Local},
		{"backends that do not make connections", asks(getX), func(s *socketless) {
			for _, b := range s.d.live.Load().hosts {
				b.cookies.Store(false)
			}
		}, synproxy.Local},
		{"backends that have been silent", asks(getX), func(s *socketless) {
			for _, b := range s.d.live.Load().hosts {
				b.heard.Store(time.Now().Add(-2 * trustTime).UnixNano())
			}
		}, synproxy.Local},
		{"a configuration they have not confirmed", asks(getX), func(s *socketless) { s.doubt(s.d.live.Load()) }, synproxy.Local},
		{"the service's limit", asks(getX), func(s *socketless) { s.d.live.Load().at[vip(80)].active.Store(2) }, synproxy.Local},
		{"admission", asks(getX), func(s *socketless) { s.d.management.decision.Store(&admission.Decision{New: 1}) }, synproxy.Answer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := socketlessStand(t, func(*Config) {})
			if tt.spoil != nil {
				tt.spoil(s)
			}
			before := s.counts()
			got := s.decide(tt.q)
			if got.Verb != tt.want {
				t.Fatalf("%v, want %v", got.Verb, tt.want)
			}
			if got.Verb == synproxy.Answer && !strings.HasPrefix(string(got.Answer), "HTTP/1.1 503 ") {
				t.Errorf("answer %q", got.Answer)
			}
			after := s.counts()
			if got.Verb != synproxy.Forward {
				if after != before {
					t.Errorf("counts %v, before %v", after, before)
				}
				return
			}
			if s.d.host(got.Node) == nil || after[0] != before[0]+1 || after[1]+after[2] != 1 {
				t.Errorf("node %d, counts %v", got.Node, after)
			}
		})
	}
}

// TestSocketlessLost takes back what was counted for a connection that nobody has.
func TestSocketlessLost(t *testing.T) {
	s, _ := socketlessStand(t, func(*Config) {})
	q := asks(getX)
	to := s.decide(q)
	s.done(q.Flow, to.Node, nil)
	if c := s.counts(); c[0] != 1 || c[1]+c[2] != 1 {
		t.Errorf("counts %v after it was made", c)
	}
	s.done(q.Flow, to.Node, errors.New("no room in the table"))
	if c := s.counts(); c != [3]int64{} {
		t.Errorf("counts %v after it was lost", c)
	}
	s.done(q.Flow, 999, errors.New("of nobody"))
}

// TestSocketlessUnmade tries one backend after the other, counts each once, and leaves the rest to sockets.
func TestSocketlessUnmade(t *testing.T) {
	s, p := socketlessStand(t, func(*Config) {})
	q := asks(getX)
	first := s.d.host(s.decide(q).Node)
	for range 3 { // one for each packet
		s.unmade(first, &wire.Unmade{Flow: q.Flow, Reason: "no listener"})
	}
	if c := s.counts(); c != [3]int64{} || len(p.returned) != 1 {
		t.Errorf("counts %v, returned %d times, want nothing and once", c, len(p.returned))
	}
	q.Returned = 1
	next := s.decide(q)
	second := s.d.host(next.Node)
	if next.Verb != synproxy.Forward || second == first {
		t.Fatalf("%v to %v after %v has failed", next.Verb, second, first.name)
	}
	s.unmade(second, &wire.Unmade{Flow: q.Flow})
	q.Returned = 2
	if got := s.decide(q); got.Verb != synproxy.Local {
		t.Errorf("%v when all have failed", got.Verb)
	}
	if c := s.counts(); c != [3]int64{} {
		t.Errorf("counts %v", c)
	}
	// The client begins anew from the same port: everybody may be tried, and is heard, again.
	q.Returned = 0
	again := s.d.host(s.decide(q).Node)
	p.forgot = synproxy.ErrNoFlow
	s.unmade(again, &wire.Unmade{Flow: q.Flow})
	if c := s.counts(); c != [3]int64{} || len(p.returned) != 3 {
		t.Errorf("counts %v, returned %d times", c, len(p.returned))
	}
}

// TestSocketlessForgets holds that refusals are not remembered for ever.
func TestSocketlessForgets(t *testing.T) {
	s, _ := socketlessStand(t, func(*Config) {})
	b := s.d.backend("b1")
	for port := range uint16(100) {
		s.refused[flowOf(tcpKey(stranger, 1+port, 80))] = refusals{by: []*backend{b}, at: time.Now().Add(-2 * refusedTime)}
	}
	s.unmade(b, &wire.Unmade{Flow: asks("").Flow})
	if len(s.refused) != 1 {
		t.Errorf("%d are remembered", len(s.refused))
	}
}

// TestSocketlessAsk holds what backends are told.
func TestSocketlessAsk(t *testing.T) {
	s, _ := socketlessStand(t, func(cfg *Config) {
		cfg.Services[len(cfg.Services)-1].Default = "second" // b2's alone
	})
	for name, want := range map[string]int{"b1": 1, "b2": 2} {
		m := s.ask(s.d.backend(name))
		got, err := m.Endpoints()
		if err != nil || len(got) != want {
			t.Errorf("%s: %v %v, want %d", name, got, err, want)
		}
		if len(m.Also) > 0 {
			t.Errorf("%s: a second secret, and there is none", name)
		}
	}
	s.offered.Also = cookie.Secret{1}
	if m := s.ask(s.d.backend("b1")); len(m.Also) == 0 {
		t.Error("the next secret is not told")
	}
}

// TestSocketlessAnswersOfBackends holds when a backend is trusted to make connections.
func TestSocketlessAnswersOfBackends(t *testing.T) {
	s, _ := socketlessStand(t, func(*Config) {})
	b := s.d.backend("b1")
	for _, tt := range []struct {
		m    wire.Message
		want bool
	}{
		{&wire.Refuse{Code: wire.CodeNoService, Reason: "not this address"}, false},
		{&wire.CookiesTaken{}, true},
		{&wire.Refuse{Code: wire.CodeBusy}, false},
	} {
		if err := b.answer(wire.Frame{ID: cookiesID, Message: tt.m}); err != nil || b.makes() != tt.want {
			t.Errorf("%v: makes connections: %t, want %t: %v", tt.m.Kind(), b.makes(), tt.want, err)
		}
	}
}

// TestSocketlessTidy removes services of a process before this one.
func TestSocketlessTidy(t *testing.T) {
	s, p := socketlessStand(t, func(*Config) {})
	for _, port := range []uint16{80, 443, 9999} {
		p.services[vip(port)] = true
	}
	if err := s.tidy(s.d.live.Load()); err != nil {
		t.Fatal(err)
	}
	if !p.services[vip(80)] || len(p.services) != 1 {
		t.Errorf("left: %v", p.services)
	}
	table := s.d.path.(*seenTable)
	table.services = make(map[netip.AddrPort]bool)
	if err := s.d.answerAt(vip(80), false); err != nil || p.services[vip(80)] || !table.has(vip(80)) {
		t.Errorf("with sockets: the proxy has %v: %v", p.services, err)
	}
	if err := s.d.answerAt(vip(80), true); err != nil || !p.services[vip(80)] || table.has(vip(80)) {
		t.Errorf("without: the proxy has %v: %v", p.services, err)
	}
	if err := s.d.silenceAt(vip(80)); err != nil || len(p.services) > 0 {
		t.Errorf("not at all: the proxy has %v: %v", p.services, err)
	}
}

// Agents are told on connecting that no service is socketless: a dispatcher before this one may have had some.
func TestTellsOfNoCookies(t *testing.T) {
	cfg := standing(t)
	var a fakeAgent
	a.serve(t, "b1", netipAddress(t, cfg.Peers[0]))
	s := start(t, cfg)
	told := func() []*wire.Cookies {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.cookies
	}
	until(t, "the agent is told", func() bool { return len(told()) == 1 })
	if at, err := told()[0].Endpoints(); err != nil || len(at) > 0 || len(told()[0].Secret) > 0 {
		t.Errorf("%v, %v; want neither addresses nor a secret", at, err)
	}
	b := s.backend("b1")
	until(t, "its answer is heard", func() bool { return b.up() })
	if b.makes() {
		t.Error("connections may be made of first packets")
	}
}
