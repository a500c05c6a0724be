// SPDX-License-Identifier: Apache-2.0

package entry

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// table is a flow table in memory.
type table struct {
	mu    sync.Mutex
	flows map[tcprepair.Flow]gate.RouteInfo
}

func (t *table) Route(f tcprepair.Flow) (gate.RouteInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.flows[f]
	if !ok {
		return r, gate.ErrNoFlow
	}
	return r, nil
}

func (t *table) Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, ok := t.flows[f]; ok {
		return r, gate.ErrExists
	}
	t.flows[f] = gate.RouteInfo{Node: owner, Epoch: epoch}
	return t.flows[f], nil
}

func (t *table) Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.flows[f]
	switch {
	case !ok:
		return r, gate.ErrNoFlow
	case r.Epoch != from:
		return r, gate.ErrEpoch
	}
	t.flows[f] = gate.RouteInfo{Node: owner, Epoch: from + 1}
	return t.flows[f], nil
}

// hosts are "front", the entry, and "a" and "b", its servers; "c" serves nothing.
type hosts struct{}

func (hosts) names() []string { return []string{"front", "a", "b", "c"} }

func (h hosts) Node(host string) (gate.Node, bool) {
	i := slices.Index(h.names(), host)
	return gate.Node(max(i, 0)), i >= 0
}

func (h hosts) HostOf(n gate.Node) string { return h.names()[n] }

func (hosts) Serves(at netip.AddrPort, host string) (entry, server bool) {
	return at.Port() == 80, host == "a" || host == "b"
}

func flow(port uint16) tcprepair.Flow {
	return tcprepair.NewFlow(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port), netip.MustParseAddrPort("198.51.100.7:1234"))
}

func newEntry() (*Entry, *table) {
	t := &table{flows: make(map[tcprepair.Flow]gate.RouteInfo)}
	return New(t, hosts{}, slog.New(slog.DiscardHandler)), t
}

// TestMove asks what agents ask for one move, in order.
func TestMove(t *testing.T) {
	e, flows := newEntry()
	now, f := time.Unix(1000, 0), flow(80)
	flows.flows[f] = gate.RouteInfo{Node: 1, Epoch: 1}
	ask := func(m wire.Message, from string) wire.Message {
		t.Helper()
		answer, ok := e.Answer(now, 7, m, from)
		if !ok {
			t.Fatalf("%v is no request", m.Kind())
		}
		return answer
	}
	owner := func(m wire.Message) migration.Owner {
		t.Helper()
		o, ok := m.(*wire.Owner)
		if !ok {
			t.Fatalf("answer %v", m.Kind())
		}
		return migration.Owner{Host: o.Host, Epoch: o.Epoch, Unknown: o.Unknown}
	}
	commit := &wire.Commit{Flow: f, Epoch: 1}
	if o := owner(ask(commit, "b")); o != (migration.Owner{Host: "a", Epoch: 1}) {
		t.Errorf("without a lease the owner became %v", o)
	}
	lease := &wire.Lease{Flow: f, Epoch: 1, To: "b", TTL: time.Second}
	if _, ok := ask(lease, "a").(*wire.Leased); !ok {
		t.Error("no lease")
	}
	if o := owner(ask(commit, "c")); o.Host != "a" {
		t.Errorf("a stranger to the lease made the owner %v", o)
	}
	for range 2 { // the second asks again, because the answer was lost
		if o := owner(ask(commit, "b")); o != (migration.Owner{Host: "b", Epoch: 2}) {
			t.Errorf("owner %v after the commit", o)
		}
	}
	if o := owner(ask(&wire.Abort{Flow: f, Epoch: 1}, "a")); o.Host != "b" {
		t.Errorf("an abort after the commit gave %v", o)
	}
	if o := owner(ask(&wire.Query{Flow: f}, "c")); o.Host != "b" {
		t.Errorf("asked, it said %v", o)
	}
}

func TestLeaseRefuses(t *testing.T) {
	e, flows := newEntry()
	now := time.Unix(1000, 0)
	flows.flows[flow(80)] = gate.RouteInfo{Node: 1, Epoch: 5}
	for _, tt := range []struct {
		name string
		m    wire.Lease
		from string
		want wire.Code
	}{
		{"another's service", wire.Lease{Flow: flow(81), Epoch: 5, To: "b", TTL: time.Second}, "a", wire.CodeNoService},
		{"to no server", wire.Lease{Flow: flow(80), Epoch: 5, To: "c", TTL: time.Second}, "a", wire.CodeNoService},
		{"old epoch", wire.Lease{Flow: flow(80), Epoch: 4, To: "b", TTL: time.Second}, "a", wire.CodeEpoch},
		{"not the owner's", wire.Lease{Flow: flow(80), Epoch: 5, To: "b", TTL: time.Second}, "b", wire.CodeEpoch},
		{"for no time", wire.Lease{Flow: flow(80), Epoch: 5, To: "b"}, "a", wire.CodeFailed},
	} {
		var refused *wire.RefusedError
		if err := e.Lease(now, 1, &tt.m, tt.from); !errors.As(err, &refused) || refused.Code != tt.want {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestAdopts lets a server tell an entry of a flow that it has forgotten.
func TestAdopts(t *testing.T) {
	e, _ := newEntry()
	now := time.Unix(1000, 0)
	if err := e.Lease(now, 1, &wire.Lease{Flow: flow(80), Epoch: 9, To: "b", TTL: time.Second}, "c"); err == nil {
		t.Error("adopted what a host that is no server says")
	}
	if err := e.Lease(now, 2, &wire.Lease{Flow: flow(80), Epoch: 9, To: "b", TTL: time.Second}, "a"); err != nil {
		t.Error(err)
	}
	if o := e.Owner(flow(80)); o != (migration.Owner{Host: "a", Epoch: 9}) {
		t.Errorf("owner %v", o)
	}
}

// TestOneCommitWins lets the source end the lease while the target commits, many times: one of them wins, and both are told the same.
func TestOneCommitWins(t *testing.T) {
	e, flows := newEntry()
	now := time.Unix(1000, 0)
	for i := range 500 {
		f, id := flow(80), uint64(i+1)
		flows.flows[f] = gate.RouteInfo{Node: 1, Epoch: 1}
		if err := e.Lease(now, id, &wire.Lease{Flow: f, Epoch: 1, To: "b", TTL: time.Second}, "a"); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var committed, aborted migration.Owner
		wg.Go(func() { committed = e.Commit(now, id, f, 1, "b") })
		wg.Go(func() { aborted = e.Abort(now, id, f, "a") })
		wg.Wait()
		if committed != aborted {
			t.Fatalf("the target heard %v, the source %v", committed, aborted)
		}
	}
}
