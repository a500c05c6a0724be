// SPDX-License-Identifier: Apache-2.0

package neighbour

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/gate"
)

func TestPeerValidate(t *testing.T) {
	good := Peer{Name: "a", Address: "10.0.0.1:7070", MAC: "02:00:5e:10:00:01", ID: 1}
	for _, tt := range []struct {
		name   string
		change func(*Peer)
		want   string // empty: nothing is wrong
	}{
		{"whole", func(*Peer) {}, ""},
		{"without a MAC", func(p *Peer) { p.MAC = "" }, ""},
		{"IPv6", func(p *Peer) { p.Address = "[fd00::1]:7070" }, ""},
		{"last id", func(p *Peer) { p.ID = gate.MaxNodes - 1 }, ""},
		{"no name", func(p *Peer) { p.Name = "" }, "name: missing"},
		{"no port", func(p *Peer) { p.Address = "10.0.0.1" }, "want ip:port of its agent"},
		{"port 0", func(p *Peer) { p.Address = "10.0.0.1:0" }, "not a host's address"},
		{"a name for an address", func(p *Peer) { p.Address = "a.example:7070" }, "want ip:port of its agent"},
		{"unspecified", func(p *Peer) { p.Address = "[::]:7070" }, "not a host's address"},
		{"MAC of 8 bytes", func(p *Peer) { p.MAC = "02:00:5e:10:00:01:02:03" }, "want an Ethernet address"},
		{"no id", func(p *Peer) { p.ID = 0 }, "id: 0: want 1 to "},
		{"large id", func(p *Peer) { p.ID = gate.MaxNodes }, "want 1 to "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := good
			tt.change(&p)
			err := p.Validate()
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func TestPeerHost(t *testing.T) {
	p := Peer{Name: "a", Address: "10.0.0.1:7070", MAC: "02:00:5e:10:00:01", ID: 3}
	want := Host{Name: "a", Addr: netip.MustParseAddr("10.0.0.1"), MAC: p.MAC, Node: 3}
	if d := cmp.Diff(want, p.Host(), cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}
	if a := (Peer{Address: "nowhere"}).IP(); a.IsValid() {
		t.Errorf("an address that is none: %v", a)
	}
}
