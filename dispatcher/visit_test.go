// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// hostsOf returns backends whose agents can be asked.
func hostsOf(names ...string) map[string]*backend {
	hosts := make(map[string]*backend, len(names))
	for i, name := range names {
		hosts[name] = &backend{name: name, node: gate.Node(i + 1), link: new(wire.Link)}
	}
	return hosts
}

func from(client string) tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(netip.MustParseAddr(client), 40000))
}

// asked returns what the parser reads of a request.
func asked(t *testing.T, target, fields string) *peek.Key {
	t.Helper()
	p, err := peek.New(peek.Config{Mode: peek.HTTP})
	if err != nil {
		t.Fatal(err)
	}
	var g peek.Progress
	key, err := p.Parse(&g, []byte("GET "+target+" HTTP/1.1\r\nHost: a\r\n"+fields+"\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	return &key
}

func stickyPool(t *testing.T, cfg PoolConfig) *pool {
	t.Helper()
	cfg.Name, cfg.Delivery = "shop", DeliveryUnmodified
	if cfg.Backends == nil {
		cfg.Backends = []BackendConfig{{Host: "b1"}, {Host: "b2", Cookie: "node2"}, {Host: "b3"}}
	}
	for i := range cfg.Backends {
		if cfg.Backends[i].Weight == nil {
			cfg.Backends[i].Weight = new(1)
		}
	}
	p, err := newPool(cfg, hostsOf("b1", "b2", "b3", "b4"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestVisit(t *testing.T) {
	const laura = "192.0.2.7"
	client := balance.KeyAddr(netip.MustParseAddr(laura))
	of := func(value, backend string) balance.Visit {
		return balance.Visit{Key: balance.Key(value), Client: client, Backend: backend}
	}
	keyless := balance.Visit{Keyless: true, Client: client}
	for _, tt := range []struct {
		name, sticky, target, fields string
		want                         balance.Visit
	}{
		{"nothing sticks", "none", "/", "Cookie: SID=x\r\n", balance.Visit{}},
		{"the client", "client", "/", "Cookie: SID=x\r\n", balance.Visit{Key: client}},
		{"a cookie", "cookie SID", "/", "Cookie: a=b; SID=x1; c=d\r\n", of("x1", "")},
		{"no cookie", "cookie SID", "/;SID=x?SID=x", "Cookie: sid=x\r\n", keyless},
		{"an empty cookie", "cookie SID", "/", "Cookie: SID=\r\n", keyless},
		{"a backend's name", "cookie SID", "/", "Cookie: SID=b3\r\n", of("b3", "b3")},
		{"a backend's value", "cookie SID", "/", "Cookie: SID=node2\r\n", of("node2", "b2")},
		{"a name that another value stands for", "cookie SID", "/", "Cookie: SID=b2\r\n", of("b2", "")},
		{"a servlet container's", "cookie JSESSIONID", "/", "Cookie: JSESSIONID=7A.0F.node2\r\n", of("7A.0F.node2", "b2")},
		{"quoted", "cookie SID", "/", "Cookie: SID=\"b1\"\r\n", of(`"b1"`, "b1")},
		{"a session's cookie", "session SID", "/;SID=y?SID=z", "Cookie: SID=x\r\n", of("x", "")},
		{"in the path", "session SID", "/a;v=1;SID=y/b;SID=w?SID=z", "", of("y", "")},
		{"in the query", "session SID", "/a;v=1?q=1&SID=z&SID=v", "", of("z", "")},
		{"in another's name", "session SID", "/a;XSID=1?SIDX=2", "", keyless},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := stickyPool(t, PoolConfig{Sticky: tt.sticky})
			if d := cmp.Diff(tt.want, p.visit(from(laura), asked(t, tt.target, tt.fields))); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestStickyPool follows a cookie through drain, failure and reload.
func TestStickyPool(t *testing.T) {
	p := stickyPool(t, PoolConfig{Sticky: "cookie SID"})
	now := time.Now()
	get := func(client, fields string, tried ...*member) *member {
		t.Helper()
		m := p.member(now, p.visit(from(client), asked(t, "/", fields)), tried)
		if m == nil {
			t.Fatal("no backend")
		}
		return m
	}
	const cookie = "Cookie: SID=x1\r\n"
	login := get("192.0.2.7", "")
	for range 5 { // others come between; the cookie that login has set comes back
		get("192.0.2.8", "")
		if m := get("192.0.2.7", cookie); m != login {
			t.Fatalf("to %s, the cookie is %s's", m.name, login.name)
		}
	}
	if m := get("198.51.100.77", cookie); m != login {
		t.Errorf("from another address to %s, the cookie is %s's", m.name, login.name)
	}

	login.set(nil, new(true), nil, now)
	second := get("192.0.2.7", cookie)
	if second == login {
		t.Error("a drained backend gets a connection by stickiness")
	}
	login.set(nil, new(false), nil, now)
	if m := get("192.0.2.7", cookie); m != second {
		t.Errorf("to %s although %s has the session now", m.name, second.name)
	}
	third := get("192.0.2.7", cookie, second)
	if third == second || get("192.0.2.7", cookie) != third {
		t.Error("a backend that has refused the connection keeps the cookie")
	}
	third.host.link = nil
	fourth := get("192.0.2.7", cookie)
	third.host.link = new(wire.Link)
	if fourth == third || get("192.0.2.7", cookie) != fourth {
		t.Error("a backend that was down keeps the cookie")
	}

	// A reload with other backends in another order, and another policy.
	next := stickyPool(t, PoolConfig{
		Sticky: "cookie SID", StickyTime: time.Hour, Balance: balance.LeastConnections,
		Backends: []BackendConfig{{Host: "b4"}, {Host: "b3"}, {Host: "b2"}, {Host: "b1"}},
	})
	next.inherit(p)
	old := p
	p = next
	if m := get("192.0.2.7", cookie); m.name != fourth.name {
		t.Errorf("after a reload to %s, was at %s", m.name, fourth.name)
	}
	if old.sticky.Len() != p.sticky.Len() || p.sticky.Len() == 0 {
		t.Errorf("%d remembered, %d before", p.sticky.Len(), old.sticky.Len())
	}
	// What sticks by something else is not remembered.
	other := stickyPool(t, PoolConfig{Sticky: "cookie USER"})
	other.inherit(p)
	if n := other.sticky.Len(); n != 0 {
		t.Errorf("%d remembered of another cookie", n)
	}
}

func TestStickyConfig(t *testing.T) {
	for _, tt := range []struct{ name, old, new, want string }{
		{"unknown", "delivery: unmodified", "delivery: unmodified\n    sticky: user", `pools[0] files: sticky: "user": want none, client, cookie NAME or session NAME`},
		{"cookie without name", "delivery: unmodified", "delivery: unmodified\n    sticky: cookie", "want one name after cookie"},
		{"two cookies", "delivery: unmodified", "delivery: unmodified\n    sticky: cookie a b", "want one name after cookie"},
		{"session without name", "delivery: unmodified", "delivery: unmodified\n    sticky: session", "want one name after session"},
		{"client with name", "delivery: unmodified", "delivery: unmodified\n    sticky: client x", "nothing follows client"},
		{"with hashing", "hash: header x-user", "sticky: client", "pools[1] apps: sticky: not with balance: consistent-hash"},
		{"a time for nothing", "delivery: unmodified", "delivery: unmodified\n    sticky_time: 5m", "pools[0] files: sticky: missing"},
		{"a long time", "delivery: unmodified", "delivery: unmodified\n    sticky: client\n    sticky_time: 1000h", "sticky_time: 1000h0m0s"},
		{"one key", "delivery: unmodified", "delivery: unmodified\n    sticky: client\n    sticky_keys: 1", "sticky_keys: 1: want 2 to"},
		{"a backend's cookie for nothing", "weight: 0", "cookie: x", "pools[0] files: backends[0]: cookie: only with sticky"},
		{"a cookie where none is seen", "delivery: unmodified", "delivery: unmodified\n    sticky: cookie SID", "files sticks by cookie, which is not seen in mode tls: want sticky: client"},
		{"a service that looks", "default: files", "sticky: client\n    default: files", "services[0] web: sticky: not with mode http, whose pools say it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(goodConfig, tt.old, tt.new, 1)
			if text == goodConfig {
				t.Fatalf("%q does not stand in the configuration", tt.old)
			}
			_, err := ReadConfig(strings.NewReader(text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestStickyServices holds what services with sessions may say.
func TestStickyServices(t *testing.T) {
	const text = `
host: front
interfaces: [eth0]
plaintext: true
peers: [{name: b1, address: 10.0.0.11}]
services: [{name: v, addresses: ["198.51.100.1:5060"], mode: MODE, sticky: STICKY, default: p}]
pools: [{name: p, delivery: unmodified, POOL backends: [{host: b1}]}]
`
	for _, tt := range []struct{ mode, sticky, pool, want string }{
		{"sip", "session", "", ""},
		{"sip", "none", "", ""},
		{"udp", "client", "", ""},
		{"sip", "cookie", "", `services[0] v: sticky: "cookie": not in mode sip`},
		{"sip", "user", "", `sticky: "user": want none, client or session`},
		{"sip", "client", "sticky: client,", "default: p has sticky: client: in mode sip the service says what sticks"},
	} {
		_, err := ReadConfig(strings.NewReader(strings.NewReplacer("MODE", tt.mode, "STICKY", tt.sticky, "POOL", tt.pool).Replace(text)))
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%v: %v", tt, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%v: error %v, want one with %q", tt, err, tt.want)
		}
	}
}
