// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/gate"
)

func TestNumbered(t *testing.T) {
	placed := func(names ...string) (peers []PeerConfig) {
		for i, n := range names {
			peers = append(peers, PeerConfig{Name: n, ID: uint16(i) + 1, Place: uint16(i) + 1})
		}
		return peers
	}
	with := func(peers []PeerConfig, name string, id uint16) []PeerConfig {
		return append(peers, PeerConfig{Name: name, ID: id})
	}
	for _, tt := range []struct {
		name  string
		known map[gate.Node]string
		peers []PeerConfig
		want  map[string]uint16
		err   string
	}{
		{"nothing known", nil, placed("a", "b"), map[string]uint16{"a": 1, "b": 2}, ""},
		{"as before", map[gate.Node]string{1: "a", 2: "b"}, placed("a", "b"), map[string]uint16{"a": 1, "b": 2}, ""},
		{"another order", map[gate.Node]string{1: "a", 2: "b"}, placed("b", "a"), map[string]uint16{"a": 1, "b": 2}, ""},
		{"the first has left", map[gate.Node]string{1: "a", 2: "b"}, placed("b"), map[string]uint16{"b": 2}, ""},
		{"a new one in front", map[gate.Node]string{1: "a", 2: "b"}, placed("c", "a", "b"), map[string]uint16{"a": 1, "b": 2, "c": 3}, ""},
		{"a new one in the place of one that left", map[gate.Node]string{1: "a", 2: "b"}, placed("a", "c"), map[string]uint16{"a": 1, "c": 3}, ""},
		{"a new one in a free place", map[gate.Node]string{1: "a", 9: "b"}, placed("a", "b", "c"), map[string]uint16{"a": 1, "b": 9, "c": 3}, ""},
		{"one that comes back", map[gate.Node]string{1: "a", 2: "b", 3: "c"}, placed("c", "a"), map[string]uint16{"a": 1, "c": 3}, ""},
		{"said first", nil, with(placed("a", "b"), "c", 7), map[string]uint16{"a": 1, "b": 2, "c": 7}, ""},
		{"said, where the place of another is", map[gate.Node]string{5: "a"}, with(placed("a", "b"), "c", 1), map[string]uint16{"a": 5, "b": 2, "c": 1}, ""},
		{"built without places", nil, []PeerConfig{{Name: "a"}, {Name: "b"}}, map[string]uint16{"a": 1, "b": 2}, ""},
		{"said, another's", map[gate.Node]string{7: "a"}, with(nil, "b", 7), nil, "id 7 of b is a's in the flow table"},
		{"said, not its own", map[gate.Node]string{7: "a"}, with(nil, "a", 8), nil, "a has the id 7 in the flow table, not 8"},
		{"no number left", full(), placed("new"), nil, "no id is left for new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(tt.known)
			peers, all, err := numbered(tt.known, tt.peers)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]uint16)
			for _, p := range peers {
				got[p.Name] = p.ID
				if all[gate.Node(p.ID)] != p.Name {
					t.Errorf("number %d is %q's", p.ID, all[gate.Node(p.ID)])
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			for n, name := range tt.known {
				if all[n] != name {
					t.Errorf("number %d was %s's and is %q's", n, name, all[n])
				}
			}
			if len(tt.known) != before {
				t.Error("what was known has changed")
			}
		})
	}
}

// full is a table in which every number has a host.
func full() map[gate.Node]string {
	all := make(map[gate.Node]string)
	for n := gate.Node(1); n < gate.MaxNodes; n++ {
		all[n] = "old-" + string(rune('a'+n%26)) + strings.Repeat("x", int(n))
	}
	return all
}

// noted is what a dispatcher before this one has left.
type noted struct {
	names map[gate.Node]string
	err   error
}

func (n *noted) Load() (map[gate.Node]string, error) { return n.names, n.err }

func (n *noted) Save(names map[gate.Node]string) error {
	n.names = names
	return n.err
}

// nodeFlows is a packet path with one flow of each node.
type nodeFlows struct {
	Path
	nodes []gate.Node
}

func (f nodeFlows) Scan(at forward.Cursor, into []forward.Known) (int, forward.Cursor, error) {
	if int(at) == len(f.nodes) {
		return 0, 0, nil
	}
	into[0].Node = f.nodes[at]
	return 1, at + 1, nil
}

// A dispatcher that starts again gives its peers the numbers that they had, and forgets those that nothing needs.
func TestNumbersAfterRestart(t *testing.T) {
	names := &noted{names: map[gate.Node]string{1: "gone", 2: "b1", 3: "gone-with-flows", 4: "b2"}}
	cfg := standing(t)
	s := start(t, cfg, func(d *Dispatcher) {
		d.names = names
		d.path = nodeFlows{d.path, []gate.Node{0, 2, 3, 3}}
	})
	for n, want := range map[gate.Node]string{2: "b1", 3: "gone-with-flows", 4: "b2"} {
		if got := s.HostOf(n); got != want {
			t.Errorf("node %d is %s, want %s", n, got, want)
		}
	}
	if n, _ := s.Node("b1"); n != 2 {
		t.Errorf("b1 is node %d, want 2", n)
	}
	if d := cmp.Diff(map[gate.Node]string{2: "b1", 3: "gone-with-flows", 4: "b2"}, names.names); d != "" {
		t.Error(d)
	}
	expect(t, cfg.Services[0].Addresses[0], "shop.example", "shop")
	names.err = errors.New("full")
	before := s.live.Load()
	if err := s.Reload(t.Context(), valid(t, cfg)); !errors.Is(err, names.err) || s.live.Load() != before {
		t.Errorf("%v, want the plan to stay", err)
	}
}
