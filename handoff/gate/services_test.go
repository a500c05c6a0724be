// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestServices lists services, also those of a former process in a pinned table.
func TestServices(t *testing.T) {
	pin := bpffs(t)
	h := network(t, 1)[0]
	open := func() *Gate {
		g, err := h.open(t, Config{Interfaces: []string{"eth0"}, PinPath: pin})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	expect := func(when string, g *Gate, want ...netip.AddrPort) {
		t.Helper()
		got, err := g.Services()
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	g := open()
	expect("at first", g)
	four, port, six := netip.MustParseAddrPort("10.1.2.3:80"), netip.MustParseAddrPort("10.1.2.3:443"), netip.MustParseAddrPort("[fd00::12:3456]:80")
	for _, a := range []netip.AddrPort{four, port, six} {
		if err := g.SetService(a, []Node{1}); err != nil {
			t.Fatal(err)
		}
	}
	expect("three", g, four, port, six)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = open()
	defer g.Remove() //nolint:errcheck // network checks what is left
	expect("after a restart", g, four, port, six)
	for _, a := range []netip.AddrPort{four, six} {
		if err := g.RemoveService(a); err != nil {
			t.Fatal(err)
		}
	}
	expect("without two", g, port)
}
