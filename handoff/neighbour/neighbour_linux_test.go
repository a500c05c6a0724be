// SPDX-License-Identifier: Apache-2.0

package neighbour

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	os.Exit(leakcheck.Main(m, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}))
}

// hop is a line of the table.
type hop struct {
	node gate.Node
	dst  string
}

// table tells what is written into it.
type table chan hop

// SetNode implements Nodes.
func (t table) SetNode(n gate.Node, _ int, dst, _ net.HardwareAddr) error {
	t <- hop{n, dst.String()}
	return nil
}

// TestFollow changes the list of hosts: what is new, or is elsewhere now, is told at once, and what stays is not.
func TestFollow(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(2))
	entry, a, b := labtest.Host(t, lab, "entry"), labtest.Host(t, lab, "a"), labtest.Host(t, lab, "b")
	mac := func(h *netnslab.Host) string {
		l, err := h.Link()
		if err != nil {
			t.Fatal(err)
		}
		return l.MAC.String()
	}
	// One by the neighbour table, one as the configuration says.
	one, two := Host{Name: "a", Addr: a.Addr4(), Node: 1}, Host{Name: "b", Addr: b.Addr4(), Node: 2, MAC: "02:00:00:00:00:02"}
	moved := one
	moved.MAC = "02:00:00:00:00:11"
	steps := [][]Host{{one}, {one, two}, {two, moved}, {moved}, {moved, two}}
	changed, seen, once := make([]chan struct{}, len(steps)), make([]chan struct{}, len(steps)), make([]sync.Once, len(steps))
	for i := range changed {
		changed[i], seen[i] = make(chan struct{}), make(chan struct{})
	}
	list := func() ([]Host, <-chan struct{}) {
		for i, c := range changed {
			select {
			case <-c:
			default:
				once[i].Do(func() { close(seen[i]) })
				return steps[i], c
			}
		}
		return steps[len(steps)-1], nil
	}
	nodes, learned := make(table, 16), make(table, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- entry.Do(func() error {
			return Follow(ctx, nodes, list, func(h Host, m net.HardwareAddr) { _ = learned.SetNode(h.Node, 0, m, nil) }, slog.New(slog.DiscardHandler))
		})
	}()
	expect := func(when string, want hop) {
		t.Helper()
		for _, tab := range []table{nodes, learned} {
			select {
			case got := <-tab:
				if got != want {
					t.Errorf("%s: %v, want %v", when, got, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: nothing", when)
			}
		}
	}
	expect("at first", hop{1, mac(a)})
	begin := time.Now()
	close(changed[0])
	expect("with another", hop{2, two.MAC})
	if took := time.Since(begin); took > interval/2 {
		t.Errorf("it took %v to look", took)
	}
	close(changed[1])
	expect("with another MAC", hop{1, moved.MAC})
	close(changed[2])
	<-seen[3]
	close(changed[3])
	expect("back again", hop{2, two.MAC})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if len(nodes)+len(learned) != 0 {
		t.Error("what stayed was told again")
	}
}

// TestForget lets a host leave the list.
func TestForget(t *testing.T) {
	known := map[string]nextHop{"a": {}, "b": {}}
	forget(known, []Host{{Name: "b"}, {Name: "c"}})
	if _, ok := known["b"]; !ok || len(known) != 1 {
		t.Errorf("known are %v", known)
	}
}

// TestLocate puts hosts into the table, those that can be found.
func TestLocate(t *testing.T) {
	lab := labtest.New(t, netnslab.Standard(1))
	entry, a := labtest.Host(t, lab, "entry"), labtest.Host(t, lab, "a")
	nodes := make(table, 1)
	if err := entry.Do(func() error {
		return Locate(nodes, Host{Name: "a", Addr: a.Addr4(), Node: 3, MAC: "02:00:00:00:00:02"})
	}); err != nil {
		t.Fatal(err)
	}
	if got := <-nodes; got != (hop{3, "02:00:00:00:00:02"}) {
		t.Errorf("%v", got)
	}
	if err := entry.Do(func() error { return Locate(nodes, Host{Name: "x", Addr: a.Addr4().Next(), Node: 3}) }); err == nil || len(nodes) != 0 {
		t.Errorf("a host that is not there: %v", err)
	}
}
