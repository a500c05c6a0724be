// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// services returns what a gate is the entry of, in order.
func services(t *testing.T, g *gate.Gate) []string {
	t.Helper()
	all, err := g.Services()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range all {
		out = append(out, a.String())
	}
	slices.Sort(out)
	return out
}

func expectServices(t *testing.T, g *gate.Gate, when string, want ...string) {
	t.Helper()
	if got := services(t, g); !slices.Equal(got, want) {
		t.Errorf("%s the gate is the entry of %v, want %v", when, got, want)
	}
}

// TestReloadServices changes what a host is the entry of.
func TestReloadServices(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(0))
	g := openGate(t, labtest.Host(t, lab, "entry"))
	// A former agent's, which the configuration does not have.
	if err := g.SetService(netip.MustParseAddrPort("10.9.9.9:99"), []gate.Node{1}); err != nil {
		t.Fatal(err)
	}
	e := entryEngine(t, g, testAddress())
	e.setServices()
	expectServices(t, g, "before the start", "10.9.9.9:80", "10.9.9.9:99")
	e.withdrawPinned()
	expectServices(t, g, "after the start", "10.9.9.9:80")

	f := testFlow(1)
	if _, err := g.Adopt(f, 7, 2); err != nil {
		t.Fatal(err)
	}
	more := []netip.AddrPort{netip.MustParseAddrPort("10.9.9.9:81"), netip.MustParseAddrPort("[fd00::9]:80")}
	reloaded(t, e, func(c *Config) {
		c.Services[0].Addresses = append(c.Services[0].Addresses, more[0])
		c.Services = append(c.Services, ServiceConfig{Name: "6", Entry: "b", Servers: []string{"a"}, Addresses: more[1:]})
	})
	expectServices(t, g, "with more", "10.9.9.9:80", "10.9.9.9:81", "[fd00::9]:80")

	// A list of servers that the gate does not take: nothing stays of it.
	bad := e.cfg
	bad.Services = slices.Clone(bad.Services)
	bad.Services[0].Addresses = []netip.AddrPort{testAddress(), netip.MustParseAddrPort("10.9.9.9:82")}
	bad.Services[1].Servers = slices.Repeat([]string{"a"}, gate.MaxServiceNodes+1)
	if err := e.reload(bad); err == nil {
		t.Error("too many servers were accepted")
	}
	expectServices(t, g, "after a refused reload", "10.9.9.9:80", "10.9.9.9:81", "[fd00::9]:80")

	// Another host becomes the entry of one, another service is no more, and c is no host any more.
	reloaded(t, e, func(c *Config) {
		without("c")(c)
		c.Services[0].Addresses = []netip.AddrPort{testAddress()}
		c.Services[1].Entry = "a"
	})
	expectServices(t, g, "with less", "10.9.9.9:80")
	if r, err := g.Route(f); err != nil || r.Node != 2 {
		t.Errorf("a flow of c's: %+v, %v", r, err)
	}
	if o := e.entry.Owner(f); o.Host != "c" || o.Epoch != 7 {
		t.Errorf("the owner is %v", o)
	}
	// Its last moves are seen to their ends.
	if err := e.entry.Lease(time.Now(), 1, &wire.Lease{Flow: f, Epoch: 7, To: "a", TTL: e.times.Limit}, "c"); err != nil {
		t.Errorf("a lease for a move from c: %v", err)
	}
	if o := e.entry.Commit(time.Now(), 1, f, 7, "a"); o.Host != "a" || o.Epoch != 8 {
		t.Errorf("the owner is %v", o)
	}
	reloaded(t, e, func(c *Config) { c.Services = nil })
	expectServices(t, g, "without services")
}
