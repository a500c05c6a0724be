// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// An entry is what its owner may be given as a gate or as a forwarder.
type entry interface {
	SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error
	SetService(vip netip.AddrPort, nodes []gate.Node) error
	RemoveService(vip netip.AddrPort) error
	DrainNode(n gate.Node, drain bool) error
	Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error)
	CommitAll(changes ...gate.Change) []gate.Changed
	Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error)
	Route(f tcprepair.Flow) (gate.RouteInfo, error)
	Forget(flows ...tcprepair.Flow) error
	Run(ctx context.Context) error
	Close() error
	Remove() error
}

var (
	_ entry = (*gate.Gate)(nil)
	_ entry = (*Forwarder)(nil)
)

func TestCommit(t *testing.T) {
	s := newStand(t, Config{})
	ignore := cmpopts.IgnoreFields(gate.RouteInfo{}, "Idle")
	for _, of := range []*Flows{s.Flows, s.UDP()} {
		for _, f := range []tcprepair.Flow{flow4(), flow6()} {
			for i, step := range []struct {
				do   func() (gate.RouteInfo, error)
				want gate.RouteInfo
				err  error
			}{
				{func() (gate.RouteInfo, error) { return of.Route(f) }, gate.RouteInfo{}, gate.ErrNoFlow},
				{func() (gate.RouteInfo, error) { return of.Commit(f, 1, 3) }, gate.RouteInfo{}, gate.ErrNoFlow},
				{func() (gate.RouteInfo, error) { return of.Adopt(f, 7, 3) }, gate.RouteInfo{Node: 3, Epoch: 7}, nil},
				{func() (gate.RouteInfo, error) { return of.Adopt(f, 1, 4) }, gate.RouteInfo{Node: 3, Epoch: 7}, gate.ErrExists},
				{func() (gate.RouteInfo, error) { return of.Commit(f, 6, 4) }, gate.RouteInfo{Node: 3, Epoch: 7}, gate.ErrEpoch},
				{func() (gate.RouteInfo, error) { return of.Commit(f, 7, 4) }, gate.RouteInfo{Node: 4, Epoch: 8}, nil},
				{func() (gate.RouteInfo, error) { return of.Commit(f, 7, 5) }, gate.RouteInfo{Node: 4, Epoch: 8}, gate.ErrEpoch},
				{func() (gate.RouteInfo, error) { return of.Route(f) }, gate.RouteInfo{Node: 4, Epoch: 8}, nil},
				{func() (gate.RouteInfo, error) { return gate.RouteInfo{}, of.Forget(f) }, gate.RouteInfo{}, nil},
				{func() (gate.RouteInfo, error) { return gate.RouteInfo{}, of.Forget(f) }, gate.RouteInfo{}, nil},
				{func() (gate.RouteInfo, error) { return of.Route(f) }, gate.RouteInfo{}, gate.ErrNoFlow},
				{func() (gate.RouteInfo, error) { return of.Commit(f, 8, 5) }, gate.RouteInfo{}, gate.ErrNoFlow},
				{func() (gate.RouteInfo, error) { return of.Adopt(f, 1, 0) }, gate.RouteInfo{Node: 0, Epoch: 1}, nil},
				{func() (gate.RouteInfo, error) { return gate.RouteInfo{}, of.Forget(f) }, gate.RouteInfo{}, nil},
			} {
				got, err := step.do()
				if !errors.Is(err, step.err) || (err != nil) != (step.err != nil) {
					t.Fatalf("protocol %d, %v, step %d: %v, want %v", of.proto, f, i, err, step.err)
				}
				if d := cmp.Diff(step.want, got, ignore); d != "" {
					t.Fatalf("protocol %d, %v, step %d: %s", of.proto, f, i, d)
				}
			}
		}
	}
}

// Two movers that both want a flow: one gets it.
func TestCommitRace(t *testing.T) {
	s := newStand(t, Config{})
	if _, err := s.Adopt(flow4(), 1, 1); err != nil {
		t.Fatal(err)
	}
	const movers, moves = 4, 200
	won := make(chan int, movers)
	for m := range movers {
		go func() {
			n := 0
			for epoch := uint32(1); epoch <= moves; epoch++ {
				switch _, err := s.Commit(flow4(), epoch, gate.Node(m+1)); {
				case err == nil:
					n++
				case !errors.Is(err, gate.ErrEpoch):
					t.Error(err)
				}
			}
			won <- n
		}()
	}
	sum := 0
	for range movers {
		sum += <-won
	}
	r, err := s.Route(flow4())
	if err != nil || int(r.Epoch) != sum+1 {
		t.Errorf("%d commits succeeded, and yet the route is %+v, %v", sum, r, err)
	}
}

func TestCommitAll(t *testing.T) {
	s := newStand(t, Config{})
	const n = 3 * maxOperations / 2
	changes := make([]gate.Change, n)
	for i := range changes {
		changes[i] = gate.Change{Flow: benchFlow(i, i%2 == 1), From: 1, Owner: 2}
		if i%3 > 0 {
			if _, err := s.Adopt(changes[i].Flow, uint32(i%3), 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	changes[4].Flow = tcprepair.Flow{}
	changes[7].Owner = MaxNodes
	for i, a := range s.CommitAll(changes...) {
		var want error
		switch i % 3 {
		case 0:
			want = gate.ErrNoFlow
		case 2:
			want = gate.ErrEpoch
		}
		if i == 4 || i == 7 {
			if a.Err == nil {
				t.Errorf("change %d succeeded: %+v", i, a)
			}
			continue
		}
		if !errors.Is(a.Err, want) || want == nil && (a.Err != nil || a.Route.Node != 2 || a.Route.Epoch != 2) {
			t.Errorf("change %d: %+v, want %v", i, a, want)
		}
	}
}

// A pure SYN always decides anew; nothing else does.
func TestSYN(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{})
			for _, n := range []gate.Node{1, 2} {
				if err := s.SetNode(n, s.host.index(t), net.HardwareAddr{2, 0, 0, 0, 0, byte(n)}, s.mac); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.SetService(f.Local, []gate.Node{1, 0, 2}); err != nil {
				t.Fatal(err)
			}
			send := func(flags byte) (verdict, []byte) { return s.execute(t, mode, packetOf(s.mac, f, protoTCP, flags, 0)) }
			for i, step := range []struct {
				flags byte
				want  verdict
				node  gate.Node
				known bool
			}{
				{ack, passed, 0, false},
				{syn | ack, passed, 0, false},
				{rst, passed, 0, false},
				{syn | 0xc0, redirected, 1, true}, // with ECN's bits
				{syn, redirected, 1, true},        // a repetition
				{ack, redirected, 1, true},
				{syn | fin, redirected, 1, true},
				{syn, passed, 0, true}, // the next connection: this host
				{syn, passed, 0, true},
				{ack, passed, 0, true},
				{syn, redirected, 2, true},
				{rst, redirected, 2, true},
				{syn, redirected, 1, true},
				{ack, redirected, 1, true},
			} {
				got, out := send(step.flags)
				r, err := s.Route(f)
				if got != step.want || r.Node != step.node || (err == nil) != step.known || step.known && r.Epoch != 1 {
					t.Errorf("%v, step %d: flags %#x: %s, route %+v, %v", mode, i, step.flags, got, r, err)
				}
				if got == redirected && out[5] != byte(step.node) {
					t.Errorf("%v, step %d: sent to %x", mode, i, out[:6])
				}
			}
			if got := s.Stats().Assigned; got != 4 {
				t.Errorf("%d flows assigned, want 4", got)
			}
			// A move of the former connection that commits late must not catch the next one, which is of epoch 1 as well.
			send(syn)
			if _, err := s.Commit(f, 1, 2); !errors.Is(err, gate.ErrEpoch) {
				t.Errorf("committed a flow in its handshake: %v", err)
			}
			send(ack)
			if _, err := s.Commit(f, 1, 2); err != nil {
				t.Errorf("commit after the handshake: %v", err)
			}
			// A forgotten flow's port is used again at once.
			if err := s.Forget(f); err != nil {
				t.Fatal(err)
			}
			if got, _ := send(syn); got != redirected {
				t.Errorf("SYN after Forget: %s", got)
			}
			send(ack)
			// Nobody left: the own stack answers, and what was there before is no more.
			for _, n := range []gate.Node{0, 1, 2} {
				if err := s.DrainNode(n, true); err != nil {
					t.Fatal(err)
				}
			}
			if got, _ := send(ack); got != redirected {
				t.Errorf("a drained node's own flow: %s", got)
			}
			if got, _ := send(syn); got != passed {
				t.Errorf("all drained: %s", got)
			}
			if _, err := s.Route(f); !errors.Is(err, gate.ErrNoFlow) {
				t.Errorf("after a SYN that nobody takes: %v", err)
			}
			if err := s.DrainNode(2, false); err != nil {
				t.Fatal(err)
			}
			if _, out := send(syn); out[5] != 2 {
				t.Errorf("only node 2 takes flows, and yet sent to %x", out[:6])
			}
			if err := s.RemoveService(f.Local); err != nil {
				t.Fatal(err)
			}
			if got, _ := send(ack); got != redirected {
				t.Errorf("known flow of a removed service: %s", got)
			}
			if got, _ := send(syn); got != passed {
				t.Errorf("SYN to a removed service: %s", got)
			}
		}
	}
}

// The first datagram decides, the others follow.
func TestDatagrams(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{})
			if err := s.SetNode(1, s.host.index(t), net.HardwareAddr{2, 0, 0, 0, 0, 1}, s.mac); err != nil {
				t.Fatal(err)
			}
			if err := s.SetService(f.Local, []gate.Node{1}); err != nil { // of TCP: must not matter
				t.Fatal(err)
			}
			send := func(f tcprepair.Flow) (verdict, []byte) {
				return s.execute(t, mode, packetOf(s.mac, f, protoUDP, 0, 20))
			}
			if got, _ := send(f); got != passed {
				t.Errorf("no service: %s", got)
			}
			if err := s.UDP().SetService(f.Local, []gate.Node{node, 1}); err != nil {
				t.Fatal(err)
			}
			other := tcprepair.NewFlow(f.Local, netip.AddrPortFrom(f.Remote.Addr(), 4001))
			for i, step := range []struct {
				flow tcprepair.Flow
				to   byte
			}{{f, 0x42}, {f, 0x42}, {other, 1}, {f, 0x42}, {other, 1}} {
				if got, out := send(step.flow); got != redirected || out[5] != step.to {
					t.Errorf("%v, datagram %d: %s to %x", mode, i, got, out[:6])
				}
			}
			if _, err := s.UDP().Commit(f, 1, 1); err != nil {
				t.Fatal(err)
			}
			if _, out := send(f); out[5] != 1 {
				t.Errorf("after Commit: to %x", out[:6])
			}
			r, err := s.UDP().Route(f)
			if want := (gate.RouteInfo{Node: 1, Epoch: 2, Forwarded: 4}); err != nil || !cmp.Equal(r, want, cmpopts.IgnoreFields(r, "Idle")) {
				t.Errorf("Route = %+v, %v, want %+v", r, err, want)
			}
			if _, err := s.Route(f); !errors.Is(err, gate.ErrNoFlow) {
				t.Errorf("the TCP flow of the same ports: %v", err)
			}
		}
	}
}

func TestIdle(t *testing.T) {
	s := newStand(t, Config{})
	if _, err := s.Adopt(flow4(), 1, node); err != nil {
		t.Fatal(err)
	}
	eventually(t, "idle time grows", func() bool {
		r, err := s.Route(flow4())
		return err == nil && r.Idle > 30*time.Millisecond
	})
	s.execute(t, TCX, packetOf(s.mac, flow4(), protoTCP, ack, 0))
	if r, err := s.Route(flow4()); err != nil || r.Idle > 25*time.Millisecond {
		t.Errorf("after a packet: %+v, %v", r, err)
	}
}

func TestArguments(t *testing.T) {
	s := newStand(t, Config{})
	mac := nodeMAC()
	_, adopted := s.Adopt(flow4(), 0, 1)
	_, noFlow := s.Route(tcprepair.Flow{})
	_, noNode := s.Adopt(flow4(), 1, MaxNodes)
	for name, err := range map[string]error{
		"node 0":             s.SetNode(0, 1, mac, mac),
		"node too large":     s.SetNode(MaxNodes, 1, mac, mac),
		"no interface":       s.SetNode(1, 0, mac, mac),
		"short MAC":          s.SetNode(1, 1, mac[:5], mac),
		"drain unknown":      s.DrainNode(MaxNodes, true),
		"service on no port": s.SetService(netip.MustParseAddrPort("10.0.0.1:0"), nil),
		"too many nodes":     s.SetService(netip.MustParseAddrPort("10.0.0.1:1"), make([]gate.Node, MaxServiceNodes+1)),
		"service of no node": s.SetService(netip.MustParseAddrPort("10.0.0.1:1"), []gate.Node{MaxNodes}),
		"epoch 0":            adopted,
		"no flow":            noFlow,
		"no such node":       noNode,
		"forget no flow":     s.Forget(tcprepair.Flow{}),
	} {
		var op *OpError
		if !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.RemoveService(netip.MustParseAddrPort("10.0.0.1:1")); err != nil {
		t.Errorf("remove an unknown service: %v", err)
	}
}

// Grant is a Commit that leaves the path as it is, and Settle switches it for the owner alone.
func TestGrant(t *testing.T) {
	s := newStand(t, Config{})
	ignore := cmpopts.IgnoreFields(gate.RouteInfo{}, "Idle")
	f := flow4()
	for i, step := range []struct {
		do   func() (gate.RouteInfo, error)
		want gate.RouteInfo
		err  error
	}{
		{func() (gate.RouteInfo, error) { return s.Grant(f, 1, 3) }, gate.RouteInfo{}, gate.ErrNoFlow},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 1, 3) }, gate.RouteInfo{}, gate.ErrNoFlow},
		{func() (gate.RouteInfo, error) { return s.Adopt(f, 1, 0) }, gate.RouteInfo{Epoch: 1}, nil},
		{func() (gate.RouteInfo, error) { return s.Grant(f, 2, 3) }, gate.RouteInfo{Epoch: 1}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return s.Grant(f, 1, 3) }, gate.RouteInfo{Node: 3, Epoch: 2}, nil},
		{func() (gate.RouteInfo, error) { return s.Grant(f, 1, 3) }, gate.RouteInfo{Node: 3, Epoch: 2}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 2, 4) }, gate.RouteInfo{Node: 3, Epoch: 2}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 1, 3) }, gate.RouteInfo{Node: 3, Epoch: 2}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 2, 3) }, gate.RouteInfo{Node: 3, Epoch: 2}, nil},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 2, 3) }, gate.RouteInfo{Node: 3, Epoch: 2}, nil},
		{func() (gate.RouteInfo, error) { return s.Commit(f, 2, 4) }, gate.RouteInfo{Node: 4, Epoch: 3}, nil},
		{func() (gate.RouteInfo, error) { return s.Settle(f, 2, 3) }, gate.RouteInfo{Node: 4, Epoch: 3}, gate.ErrEpoch},
	} {
		got, err := step.do()
		if !errors.Is(err, step.err) || step.err == nil && err != nil {
			t.Fatalf("step %d: %v, want %v", i, err, step.err)
		}
		if diff := cmp.Diff(step.want, got, ignore); diff != "" {
			t.Errorf("step %d: %s", i, diff)
		}
	}
}
