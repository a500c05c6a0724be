// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/rehome-net/rehome/dispatcher/api"
	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/peer"
)

func TestStatus(t *testing.T) {
	cfg := standing(t)
	cfg.Pools[1].Backends[0].Weight = new(3)
	s := start(t, cfg)
	s.table.stats = forward.Stats{Flows: 7, Forwarded: 8, Full: 9, NoNode: 10}
	s.backend("b1").active.Store(4)
	s.live.Load().services[0].active.Store(5)
	visit(t, cfg.Services[0].Addresses[0], "x.example")
	until(t, "the dispatcher looks", func() bool { return s.live.Load().peeking() == 1 })
	got, err := s.operator(t).Status(t.Context(), &api.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(time.Unix(got.GetLoaded(), 0)); age < 0 || age > time.Minute {
		t.Errorf("loaded %v ago", age)
	}
	b := func(name, address string, node, weight uint32, active int64) *api.Backend {
		return &api.Backend{
			Name: name, Host: name, Address: address, Node: node, State: "down", Weight: weight, ConfiguredWeight: weight, Active: active,
		}
	}
	want := &api.StatusResponse{
		Host: "front", Version: s.self.Version, Loaded: got.GetLoaded(),
		Table: &api.Table{Flows: 7, MaxFlows: 1 << 20, Forwarded: 8, Full: 9, Unreachable: 10},
		Services: []*api.Service{{
			Name: "web", Mode: "http", Addresses: []string{cfg.Services[0].Addresses[0].String()}, Peeking: 1, Active: 5, Routes: 1,
			DefaultPool: "files",
		}},
		Pools: []*api.Pool{
			{Name: "files", Delivery: "linked", Balance: "round-robin", Backends: []*api.Backend{
				b("b1", cfg.Peers[0].Address, 1, 1, 4), b("b2", cfg.Peers[1].Address, 2, 1, 0),
			}},
			{Name: "shop", Delivery: "linked", Balance: "round-robin", Backends: []*api.Backend{b("b2", cfg.Peers[1].Address, 2, 3, 0)}},
		},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// TestBackendStates goes through the states that an operator sees.
func TestBackendStates(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	m := s.live.Load().pools["shop"].members[0]
	state := func(want string) {
		t.Helper()
		if got := m.message().GetState(); got != want {
			t.Errorf("state %s, want %s", got, want)
		}
	}
	state("down")
	var a fakeAgent
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	until(t, "the agent is connected", m.host.up)
	state("up")
	m.host.draining.Store(true)
	state("drained")
	m.host.draining.Store(false)
	m.set(nil, new(true), nil, time.Now())
	state("drained")
	if got := m.message(); !got.GetDrained() || got.GetDraining() {
		t.Errorf("drained by its operator: %v", got)
	}
}

func TestSetBackend(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	client := s.operator(t)
	for _, tt := range []struct {
		name string
		req  *api.SetBackendRequest
		code codes.Code
		want []string // what has changed, as pool/backend, weight, slow start, drained
	}{
		{"drain everywhere", &api.SetBackendRequest{Backend: "b2", Drained: new(true)}, codes.OK, []string{"files/b2 1 drained", "shop/b2 1 drained"}},
		{"undrain in one pool", &api.SetBackendRequest{Pool: "files", Backend: "b2", Drained: new(false)}, codes.OK, []string{"files/b2 1"}},
		{"weight", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Weight: new(uint32(1000))}, codes.OK, []string{"shop/b2 1000 drained"}},
		{"weight 0", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Weight: new(uint32(0))}, codes.OK, []string{"shop/b2 0 drained"}},
		{"both", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Weight: new(uint32(2)), Drained: new(false)}, codes.OK, []string{"shop/b2 2"}},
		{"slow start", &api.SetBackendRequest{Pool: "shop", Backend: "b2", SlowStartMillis: new(int64(60_000))}, codes.OK, []string{"shop/b2 2 slow"}},
		{"no slow start", &api.SetBackendRequest{Pool: "shop", Backend: "b2", SlowStartMillis: new(int64(0))}, codes.OK, []string{"shop/b2 2"}},
		{"slow start and weight", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Weight: new(uint32(3)), SlowStartMillis: new(int64(60_000))}, codes.OK, []string{"shop/b2 3 slow"}},
		{"undrained as the pool says", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Drained: new(true)}, codes.OK, []string{"shop/b2 3 slow drained"}},
		{"and again", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Drained: new(false)}, codes.OK, []string{"shop/b2 3"}},
		{"too slow", &api.SetBackendRequest{Pool: "shop", Backend: "b2", SlowStartMillis: new(int64(25 * 3600_000))}, codes.InvalidArgument, nil},
		{"slower than never", &api.SetBackendRequest{Pool: "shop", Backend: "b2", SlowStartMillis: new(int64(-1))}, codes.InvalidArgument, nil},
		{"slow in all pools", &api.SetBackendRequest{Backend: "b2", SlowStartMillis: new(int64(1))}, codes.InvalidArgument, nil},
		{"too heavy", &api.SetBackendRequest{Pool: "shop", Backend: "b2", Weight: new(uint32(1001))}, codes.InvalidArgument, nil},
		{"weight in all pools", &api.SetBackendRequest{Backend: "b2", Weight: new(uint32(1))}, codes.InvalidArgument, nil},
		{"nothing", &api.SetBackendRequest{Backend: "b2"}, codes.InvalidArgument, nil},
		{"nobody", &api.SetBackendRequest{Drained: new(true)}, codes.InvalidArgument, nil},
		{"unknown pool", &api.SetBackendRequest{Pool: "fils", Backend: "b2", Drained: new(true)}, codes.NotFound, nil},
		{"unknown backend", &api.SetBackendRequest{Backend: "b7", Drained: new(true)}, codes.NotFound, nil},
		{"not in the pool", &api.SetBackendRequest{Pool: "shop", Backend: "b1", Drained: new(true)}, codes.NotFound, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := client.SetBackend(t.Context(), tt.req)
			if status.Code(err) != tt.code {
				t.Fatalf("%v, want %v", err, tt.code)
			}
			var got []string
			for _, p := range r.GetPools() {
				for _, b := range p.GetBackends() {
					line := p.GetName() + "/" + b.GetName() + " " + big.NewInt(int64(b.GetWeight())).String()
					if left := b.GetSlowStartLeftMillis(); left > 59_000 && left <= 60_000 {
						line += " slow"
					} else if left != 0 {
						t.Errorf("%d ms of a slow start are left", left)
					}
					if b.GetDrained() {
						line += " drained"
					}
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestControlReload gives each kind of error its code.
func TestControlReload(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	path := filepath.Join(t.TempDir(), "dispatcher.yaml")
	s.SetFile(path)
	client := s.operator(t)
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write([]byte("hots: front\n"))
	if _, err := client.Reload(t.Context(), &api.ReloadRequest{}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), path) {
		t.Errorf("a wrong file: %v", err)
	}
	restart := cfg
	restart.Workers = 5
	write(encode(t, restart))
	if _, err := client.Reload(t.Context(), &api.ReloadRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "workers") {
		t.Errorf("a restart is needed: %v", err)
	}
	cfg.Services[0].Routes = append(cfg.Services[0].Routes, RouteConfig{Host: "new.example", Pool: "shop"})
	write(encode(t, cfg))
	r, err := client.Reload(t.Context(), &api.ReloadRequest{})
	if err != nil || r.GetServices() != 1 || r.GetPools() != 2 || r.GetRoutes() != 2 || r.GetMicros() <= 0 {
		t.Errorf("%v %v", r, err)
	}
	expect(t, cfg.Services[0].Addresses[0], "new.example", "shop")
}

// TestControlSocket looks who may open it, and that a second dispatcher does not take it away.
func TestControlSocket(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	info, err := os.Stat(cfg.Control)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	second := New(valid(t, cfg), s.log)
	if _, err := second.openPorts(t.Context()); err == nil || !strings.Contains(err.Error(), "running dispatcher") {
		t.Errorf("a second dispatcher: %v", err)
	}
	if _, err := s.operator(t).Status(t.Context(), &api.StatusRequest{}); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	}
	if err := s.quit(); err != nil {
		t.Fatal(err)
	}
	// What a killed dispatcher leaves is no obstacle.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Control, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	_ = ln.Close()
	p, err := second.openPorts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.close()
}

// TestControlTLS lets in who has a certificate of the authority, and nobody else.
func TestControlTLS(t *testing.T) {
	ca := newAuthority(t)
	d := New(Config{Host: "127.0.0.1"}, nil)
	d.live.Store(&plan{cfg: Config{Host: "front"}})
	d.self.Identity = peer.NewIdentity(ca.issue(t, "127.0.0.1"), ca.pool)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.serveControl(ctx, ln) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range []struct {
		name   string
		config *tls.Config
		code   codes.Code
	}{
		{"good", &tls.Config{Certificates: []tls.Certificate{ca.issue(t, "operator")}, RootCAs: ca.pool, ServerName: "127.0.0.1"}, codes.OK},
		{"stranger", &tls.Config{Certificates: []tls.Certificate{newAuthority(t).issue(t, "operator")}, RootCAs: ca.pool, ServerName: "127.0.0.1"}, codes.Unavailable},
		{"nobody", &tls.Config{RootCAs: ca.pool, ServerName: "127.0.0.1"}, codes.Unavailable},
	} {
		c, err := api.Dial(ln.Addr().String(), tt.config)
		if err != nil {
			t.Fatal(err)
		}
		r, err := c.Status(t.Context(), &api.StatusRequest{})
		if status.Code(err) != tt.code || err == nil && r.GetHost() != "front" {
			t.Errorf("%s: %v", tt.name, err)
		}
		_ = c.Close()
	}
	if _, err := api.Dial(ln.Addr().String(), nil); err == nil {
		t.Error("no TLS, and no error")
	}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(raw); err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}}
	if ip := net.ParseIP(name); ip != nil {
		cert.DNSNames, cert.IPAddresses = nil, []net.IP{ip}
	}
	raw, err := x509.CreateCertificate(rand.Reader, cert, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{raw}, PrivateKey: key}
}
