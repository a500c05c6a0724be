// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/gate"
)

// TestNames keeps the hosts of numbers as long as the table lives, and no longer.
func TestNames(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Keep: true})
	if got, err := g.Names().Load(); err != nil || len(got) != 0 {
		t.Fatalf("at first %v, %v", got, err)
	}
	long := strings.Repeat("x", maxName)
	for _, all := range []map[gate.Node]string{
		{1: "b1", 2: "b2", MaxNodes - 1: long},
		{1: "b1", 2: "b3", 7: "b2"}, // one is another's, one is gone, one is new
		{},
		{3: "b3"},
	} {
		if err := g.Names().Save(all); err != nil {
			t.Fatal(err)
		}
		got, err := g.Names().Load()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(all, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, name := range []string{"", long + "x"} {
		if err := g.Names().Save(map[gate.Node]string{4: name}); err == nil {
			t.Errorf("a name of %d bytes was taken", len(name))
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Names().Load(); !errors.Is(err, ErrClosed) {
		t.Errorf("of a closed gate: %v", err)
	}
	g = r.open(t, Config{Keep: true})
	if got, err := g.Names().Load(); err != nil || got[3] != "b3" || len(got) != 1 {
		t.Errorf("after a restart %v, %v", got, err)
	}
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
}
