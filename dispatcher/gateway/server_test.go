// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// testAuthority issues identities.
type testAuthority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newTestAuthority(t testing.TB) *testAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testAuthority{key: key, cert: cert}
}

func (a *testAuthority) issue(t testing.TB, host string) *peer.Identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return peer.NewIdentity(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool)
}

// door is a dispatcher's port for gateways on loopback.
type door struct {
	*Server
	addr string
	errs chan error

	mu   sync.Mutex
	said []Said
}

// openDoor serves as "front" under TLS until the test ends. refuse is what it says to halves.
func openDoor(t testing.TB, identity *peer.Identity, refuse error) *door {
	t.Helper()
	d := &door{errs: make(chan error, 16)}
	var err error
	d.Server, err = NewServer(ServerConfig{Gateways: []string{"gw"}, Install: func(_ context.Context, s Said) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.said = append(d.said, s)
		return refuse
	}})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				err := d.Accept(ctx, peer.Self{Host: "front", Identity: identity}, conn)
				select {
				case d.errs <- err:
				default:
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		serving.Wait()
	})
	return d
}

func dial(t testing.TB, d *door, as string, identity *peer.Identity) (*wire.Link, error) {
	t.Helper()
	link, err := peer.Self{Host: as, Identity: identity}.Dial(t.Context(), "front", d.addr)
	if err == nil {
		t.Cleanup(func() { _ = link.Close() })
	}
	return link, err
}

func ask(t testing.TB, link *wire.Link, id uint64, m wire.Message) wire.Message {
	t.Helper()
	if err := link.Send(id, m); err != nil {
		t.Fatal(err)
	}
	f, _, err := link.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if f.ID != id {
		t.Errorf("answer to %d, asked %d", f.ID, id)
	}
	return f.Message
}

func halves(k session.Key, texts ...string) *wire.Halves {
	m := &wire.Halves{Flow: tcprepair.NewFlow(k.Server, k.Client), Protocol: k.Protocol}
	for _, s := range texts {
		m.Halves = append(m.Halves, encodeHalf(k, s))
	}
	return m
}

func TestServerInstalls(t *testing.T) {
	a := newTestAuthority(t)
	d := openDoor(t, a.issue(t, "front"), nil)
	link, err := dial(t, d, "gw", a.issue(t, "gw"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := ask(t, link, 0, &wire.GatewayHello{Hold: time.Millisecond}).(*wire.GatewayHello); !ok {
		t.Error("no GatewayHello")
	}
	if _, ok := ask(t, link, 0, &wire.Ping{}).(*wire.Pong); !ok {
		t.Error("no Pong")
	}
	for i, k := range []session.Key{flow4(), flow6()} {
		if m := ask(t, link, uint64(i)+1, halves(k, "one", "two")); m.Kind() != wire.KindInstalled {
			t.Errorf("answer %v", m.Kind())
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	want := []Said{
		{Gateway: "gw", Flow: flow4(), Halves: []inspect.Half{halfOf(flow4(), "one"), halfOf(flow4(), "two")}},
		{Gateway: "gw", Flow: flow6(), Halves: []inspect.Half{halfOf(flow6(), "one"), halfOf(flow6(), "two")}},
	}
	if diff := cmp.Diff(want, d.said, cmp.Comparer(func(a, b session.Key) bool { return a == b })); diff != "" {
		t.Errorf("said (-want +got):\n%s", diff)
	}
	if s := d.Stats(); s != (ServerStats{Reports: 2, Links: 1}) {
		t.Errorf("%+v", s)
	}
}

func TestServerRejects(t *testing.T) {
	a := newTestAuthority(t)
	d := openDoor(t, a.issue(t, "front"), errors.New("no such service"))
	link, err := dial(t, d, "gw", a.issue(t, "gw"))
	if err != nil {
		t.Fatal(err)
	}
	ask(t, link, 0, &wire.GatewayHello{})
	if m, ok := ask(t, link, 1, halves(flow4(), "one")).(*wire.Refuse); !ok || m.Reason != "no such service" {
		t.Errorf("answer %+v", m)
	}
	other := halves(flow4())
	other.Halves = [][]byte{{inspect.Version + 1}}
	if m, ok := ask(t, link, 2, other).(*wire.Refuse); !ok || m.Code != wire.CodeVersion {
		t.Errorf("answer to another version: %+v", m)
	}
	if s := d.Stats(); s.Rejected != 2 || s.Reports != 0 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// Who is no gateway is refused before it can say anything.
func TestServerRefusesStrangers(t *testing.T) {
	ours, theirs := newTestAuthority(t), newTestAuthority(t)
	for _, tt := range []struct {
		name     string
		as       string
		identity *peer.Identity
	}{
		{"another host of the cluster", "web", ours.issue(t, "web")},
		{"another host that calls itself a gateway", "gw", ours.issue(t, "web")},
		{"a gateway of another authority", "gw", theirs.issue(t, "gw")},
		{"the dispatcher's own name", "front", ours.issue(t, "front")},
		{"no certificate", "gw", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openDoor(t, ours.issue(t, "front"), nil)
			if link, err := dial(t, d, tt.as, tt.identity); err == nil {
				// In TLS 1.3 a client learns of its refusal after its handshake.
				if f, _, err := link.Receive(); err == nil {
					t.Errorf("it was answered: %v", f.Message.Kind())
				}
			}
			if err := <-d.errs; !errors.Is(err, ErrNotGateway) {
				t.Errorf("error %v, want ErrNotGateway", err)
			}
			if s := d.Stats(); s.Refused != 1 || s.Reports != 0 || len(d.said) != 0 {
				t.Errorf("%+v, said %v", s, d.said)
			}
		})
	}
}

// What no gateway sends ends the connection and is counted.
func TestServerRefusesMessages(t *testing.T) {
	a := newTestAuthority(t)
	many := make([]string, maxHalves+1)
	clients := halfOf(flow4(), "one")
	clients.Side = inspect.Client
	client, err := clients.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	with := func(encoded ...[]byte) *wire.Halves {
		m := halves(flow4())
		m.Halves = encoded
		return m
	}
	for _, tt := range []struct {
		name    string
		ungreet bool
		id      uint64
		message wire.Message
	}{
		{name: "report before the greeting", ungreet: true, id: 1, message: halves(flow4(), "one")},
		{name: "report without an id", message: halves(flow4(), "one")},
		{name: "report without a flow", id: 1, message: &wire.Halves{Protocol: 6, Halves: [][]byte{{1}}}},
		{name: "report on another protocol", id: 1, message: halves(over(47, 554, flow4()), "one")},
		{name: "empty report", id: 1, message: halves(flow4())},
		{name: "too many halves", id: 1, message: halves(flow4(), many...)},
		{name: "too many bytes", id: 1, message: with(make([]byte, maxHalfBytes+1))},
		{name: "a half that cannot be read", id: 1, message: with([]byte{inspect.Version, 99})},
		{name: "a half of another flow", id: 1, message: with(encodeHalf(flow6(), "one"))},
		{name: "a half of the client's", id: 1, message: with(client)},
		{name: "an agent's message", id: 1, message: &wire.Ended{Flow: tcprepair.NewFlow(flow4().Server, flow4().Client)}},
		{name: "a dispatcher's message", id: 1, message: &wire.Installed{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := openDoor(t, a.issue(t, "front"), nil)
			link, err := dial(t, d, "gw", a.issue(t, "gw"))
			if err != nil {
				t.Fatal(err)
			}
			if !tt.ungreet {
				ask(t, link, 0, &wire.GatewayHello{})
			}
			if err := link.Send(tt.id, tt.message); err != nil {
				t.Fatal(err)
			}
			if f, _, err := link.Receive(); err == nil {
				t.Errorf("answered: %v", f.Message.Kind())
			}
			if err := <-d.errs; !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("error %v", err)
			}
			if s := d.Stats(); s.Refused != 1 || s.Reports != 0 || s.Links != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestNewServerRefuses(t *testing.T) {
	for _, cfg := range []ServerConfig{
		{Gateways: []string{"gw"}},
		{Gateways: []string{""}, Install: func(context.Context, Said) error { return nil }},
	} {
		if _, err := NewServer(cfg); err == nil {
			t.Errorf("%+v is accepted", cfg.Gateways)
		}
	}
}

// Serve itself asks whom it serves, whoever has let them in.
func TestServeRefusesStrangers(t *testing.T) {
	s, err := NewServer(ServerConfig{Gateways: []string{"gw"}, Install: func(context.Context, Said) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	defer theirs.Close()                                           //nolint:errcheck // the other end is looked at
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second) // who serves it waits for what it says
	defer cancel()
	if err := s.Serve(ctx, "web", wire.NewLink(ours)); !errors.Is(err, ErrNotGateway) {
		t.Errorf("error %v, want ErrNotGateway", err)
	}
	if st := s.Stats(); st.Refused != 1 || st.Links != 0 {
		t.Errorf("%+v", st)
	}
}
