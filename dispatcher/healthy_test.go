// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/api"
	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/health"
)

// checkedStanding is standing with an agent of b2, whose pool shop is checked by a script: it is well as long as the file is there.
func checkedStanding(t *testing.T) (cfg Config, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "well")
	wellness(t, file, true)
	cfg = standing(t)
	cfg.Pools[1].Health = scriptCheck(file)
	return cfg, file
}

func scriptCheck(file string) *HealthConfig {
	return &HealthConfig{Type: health.Script, Interval: 20 * time.Millisecond, Timeout: limit, Rise: 1, Fall: 1, Command: []string{"/bin/ls", file}}
}

func wellness(t *testing.T, file string, well bool) {
	t.Helper()
	var err error
	if well {
		err = os.WriteFile(file, nil, 0o600)
	} else {
		err = os.Remove(file)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestCheckedMember: a backend whose check fails gets no connections, and an operator and Prometheus see so; when it is well again it starts slowly.
func TestCheckedMember(t *testing.T) {
	cfg, file := checkedStanding(t)
	s := start(t, cfg)
	var a fakeAgent
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	until(t, "b2 is up", s.backend("b2").up)
	shop, files := s.live.Load().pools["shop"].members[0], s.live.Load().pools["files"].members[1]
	found := func(st health.State) {
		t.Helper()
		until(t, "the check says "+st.String(), func() bool { return shop.condition.get() == st })
	}
	seen := func(state, word, cause string, down bool) {
		t.Helper()
		m := shop.message()
		if m.GetState() != state || m.GetHealth() != word || !strings.Contains(m.GetHealthError(), cause) || (m.GetHealthError() == "") != (cause == "") {
			t.Errorf("an operator sees %v, want %s, %s, %q", m, state, word, cause)
		}
		if got := shop.view(nil).Down; got != down {
			t.Errorf("a policy sees Down %v, want %v", got, down)
		}
		if got := (&shedding{d: s.Dispatcher}).drained(shop.host); got != down {
			t.Errorf("sessions are kept from being shed to it: %v, want %v", got, down)
		}
		if m := s.live.Load().pools["shop"].member(time.Now(), balance.Visit{}, nil); (m == nil) != down {
			t.Errorf("the pool gives connections to %v", m)
		}
		// Of the same host, in a pool that is not checked.
		if m := files.message(); m.GetState() != "up" || m.GetHealth() != "" || files.view(nil).Down {
			t.Errorf("the pool that is not checked has %v", m)
		}
	}
	found(health.Up)
	seen("up", "up", "", false)
	began := shop.view(nil).Since

	wellness(t, file, false)
	found(health.Down)
	seen("unhealthy", "down", "exit status 2", true)
	if got := healthGauges(t, s); !slices.Equal(got, []string{"shop/b2 0"}) {
		t.Errorf("backend_healthy %q", got)
	}
	st, err := s.operator(t).Status(t.Context(), &api.StatusRequest{})
	if err != nil || st.GetPools()[1].GetBackends()[0].GetHealth() != "down" {
		t.Errorf("status %v, %v", st, err)
	}

	wellness(t, file, true)
	found(health.Up)
	until(t, "the backend starts slowly", func() bool { return shop.view(nil).Since.After(began) })
	seen("up", "up", "", false)
	if got := healthGauges(t, s); !slices.Equal(got, []string{"shop/b2 1"}) {
		t.Errorf("backend_healthy %q", got)
	}

	// The agent's link counts as before.
	s.backend("b2").suspect.Store(true)
	if !shop.view(nil).Down {
		t.Error("a backend that does not answer is well because its check says so")
	}
}

// healthGauges returns the values of backend_healthy.
func healthGauges(t *testing.T, s *stand) []string {
	t.Helper()
	return memberGauges(t, s, "rehome_dispatcher_backend_healthy")
}

// memberGauges returns what Prometheus sees of the pools' members, as pool/backend and value.
func memberGauges(t *testing.T, s *stand, name string) []string {
	t.Helper()
	families, err := s.count.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			labels := map[string]string{}
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			all = append(all, labels["pool"]+"/"+labels["backend"]+map[bool]string{true: " 1", false: " 0"}[m.GetGauge().GetValue() == 1])
		}
	}
	return all
}

// TestChecksFollowThePlan: what is known of a backend survives a reload, and not the end of its checks.
func TestChecksFollowThePlan(t *testing.T) {
	cfg, file := checkedStanding(t)
	wellness(t, file, false)
	s := start(t, cfg)
	member := func() *member { return s.live.Load().pools["shop"].members[0] }
	reload := func(c Config) {
		t.Helper()
		if err := s.Reload(t.Context(), valid(t, c)); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the check fails", member().condition.ill)

	// A pool that is reconfigured keeps what is known, and is told what is new.
	next := cfg
	next.Pools = slices.Clone(cfg.Pools)
	next.Pools[1].SlowStart = time.Second
	before := member()
	reload(next)
	if member() == before || !member().condition.ill() {
		t.Error("after a reload nothing is known of the backend")
	}
	wellness(t, file, true)
	until(t, "the check succeeds", func() bool { return member().condition.get() == health.Up })

	// Without checks nobody is ill, and with them again nothing is known.
	wellness(t, file, false)
	until(t, "the check fails", member().condition.ill)
	next.Pools = slices.Clone(cfg.Pools)
	next.Pools[1].Health = nil
	reload(next)
	if m := member(); m.condition != nil || m.condition.ill() {
		t.Error("a backend without checks has a condition")
	}
	next.Pools = slices.Clone(cfg.Pools)
	reload(next)
	until(t, "the check fails again", member().condition.ill)
	elsewhere := file + "-2"
	wellness(t, elsewhere, true)
	next.Pools = slices.Clone(cfg.Pools)
	next.Pools[1].Health = scriptCheck(elsewhere)
	reload(next)
	until(t, "another check succeeds", func() bool { return member().condition.get() == health.Up })

	// What cannot be reloaded.
	next.Checks.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}
	if err := s.Reload(t.Context(), valid(t, next)); err == nil || !strings.Contains(err.Error(), "checks: cannot be changed by a reload") {
		t.Errorf("reload of checks: %v", err)
	}
}

// TestChecksAddress asks a backend at its own address.
func TestChecksAddress(t *testing.T) {
	cfg := standing(t)
	at := netipAddress(t, cfg.Peers[1])
	ln, err := net.Listen("tcp", netip.AddrPortFrom(at.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	server, ok := ln.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatal(ln.Addr())
	}
	cfg.Pools[1].Health = &HealthConfig{
		Type: health.TCP, Through: ThroughAddress, Port: uint16(server.Port), Interval: 20 * time.Millisecond, Timeout: limit, Rise: 1, Fall: 1,
	}
	s := start(t, cfg)
	m := s.live.Load().pools["shop"].members[0]
	until(t, "the check succeeds", func() bool { return m.condition.get() == health.Up })
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the check fails", m.condition.ill)
}

// TestChecksWithoutPath holds that a plan whose checks have no way is refused, rather than one whose checks all fail.
func TestChecksWithoutPath(t *testing.T) {
	cfg := standing(t)
	cfg.Checks.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}
	cfg.Pools[1].Health = &HealthConfig{Type: health.TCP}
	cfg = valid(t, cfg)
	d := New(cfg, nil)
	if _, err := d.compile(cfg, nil); err == nil || !strings.Contains(err.Error(), "pool shop: health: backend b2: through: vip") {
		t.Errorf("error %v", err)
	}
	cfg.Checks.Interface = "rhnone"
	if err := d.checks.open(cfg.Checks); err == nil || !strings.Contains(err.Error(), "checks: path for checks on rhnone") {
		t.Errorf("error %v", err)
	}
	if err := d.checks.close(); err != nil {
		t.Error(err)
	}
}
