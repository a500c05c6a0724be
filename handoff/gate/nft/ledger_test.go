// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

func flow4() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.MustParseAddrPort("192.0.2.7:4000"))
}

func flow6() tcprepair.Flow {
	return tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::7]:4000"))
}

func TestLedger(t *testing.T) {
	l := newLedger()
	f := flow4()
	commit := func(from uint32, owner gate.Node) (gate.RouteInfo, error) {
		r, err := l.commit(f, from, owner)
		if err == nil {
			l.flows[f] = r
		}
		return r, err
	}
	adopt := func(epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
		r, err := l.adopt(f, epoch, owner)
		if err == nil {
			l.flows[f] = r
		}
		return r, err
	}
	find := func() (gate.RouteInfo, error) {
		r, _, err := l.find(f)
		return r, err
	}
	for i, step := range []struct {
		do   func() (gate.RouteInfo, error)
		want gate.RouteInfo
		err  error
	}{
		{find, gate.RouteInfo{}, gate.ErrNoFlow},
		{func() (gate.RouteInfo, error) { return commit(1, 3) }, gate.RouteInfo{}, gate.ErrNoFlow},
		{func() (gate.RouteInfo, error) { return adopt(7, 3) }, gate.RouteInfo{Node: 3, Epoch: 7}, nil},
		{func() (gate.RouteInfo, error) { return adopt(1, 4) }, gate.RouteInfo{Node: 3, Epoch: 7}, gate.ErrExists},
		{func() (gate.RouteInfo, error) { return commit(6, 4) }, gate.RouteInfo{Node: 3, Epoch: 7}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return commit(7, 4) }, gate.RouteInfo{Node: 4, Epoch: 8}, nil},
		{find, gate.RouteInfo{Node: 4, Epoch: 8}, nil},
		{func() (gate.RouteInfo, error) { l.services[f.Local] = true; return find() }, gate.RouteInfo{Node: 4, Epoch: 8}, nil},
		{func() (gate.RouteInfo, error) {
			if stale := l.begun([]tcprepair.Flow{flow6(), f}); len(stale) != 1 || stale[0] != f {
				t.Errorf("stale: %v", stale)
			}
			return find()
		}, gate.RouteInfo{Epoch: 1}, nil},
		{func() (gate.RouteInfo, error) { return commit(2, 4) }, gate.RouteInfo{Epoch: 1}, gate.ErrEpoch},
		{func() (gate.RouteInfo, error) { return commit(1, 0) }, gate.RouteInfo{Epoch: 2}, nil},
		{func() (gate.RouteInfo, error) {
			if stale := l.begun([]tcprepair.Flow{f}); stale != nil {
				t.Errorf("stale, though it was this host's own: %v", stale)
			}
			return commit(1, 5)
		}, gate.RouteInfo{Node: 5, Epoch: 2}, nil},
	} {
		got, err := step.do()
		if !errors.Is(err, step.err) || (err != nil) != (step.err != nil) || got != step.want {
			t.Fatalf("step %d: %+v, %v, want %+v, %v", i, got, err, step.want, step.err)
		}
	}
}

func TestKey(t *testing.T) {
	want := []byte{192, 0, 2, 7, 0x0f, 0xa0, 0, 0, 198, 51, 100, 1, 0, 80, 0, 0}
	if got := encodeKey(flow4()); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		got, err := decodeKey(encodeKey(f))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f, got, cmpopts.EquateComparable(tcprepair.Flow{})); d != "" {
			t.Error(d)
		}
	}
	for _, n := range []int{0, 1, key4Size - 1, key4Size + 1, key6Size + 1} {
		if f, err := decodeKey(make([]byte, n)); err == nil {
			t.Errorf("%d bytes: %v", n, f)
		}
	}
}

func TestOwner(t *testing.T) {
	for _, r := range []gate.RouteInfo{{Node: 1, Epoch: 1}, {Node: MaxNodes - 1, Epoch: 1<<32 - 1}} {
		if got, err := decodeOwner(encodeOwner(r)); err != nil || got != r {
			t.Errorf("%+v: %+v, %v", r, got, err)
		}
	}
	if got := encodeOwner(gate.RouteInfo{Node: 7, Epoch: 9}); got != "node-7 epoch 9" {
		t.Error(got)
	}
	for _, c := range []string{
		"", "node-0 epoch 1", "node-4096 epoch 1", "node--1 epoch 1", "ingress-eth0 epoch 1", "node-1", "node-1 epoch 0", "node-1 epoch 4294967296", "node-1 epoch ",
	} {
		if got, err := decodeOwner(c); err == nil {
			t.Errorf("%q: %+v", c, got)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := Check(Needs{}); err != nil {
		t.Errorf("nothing asked: %v", err)
	}
	err := Check(Needs{UDP: true, Announced: true, Inspect: true, Admission: true, Nodes: true})
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("%v, want ErrUnsupported", err)
	}
	for _, part := range []string{"UDP", "announced", "inspection", "admission", "unseen", "BPF"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	for name, c := range map[string]Config{"none": {}, "twice": {Interfaces: []string{"a", "a"}}, "empty": {Interfaces: []string{""}}} {
		if err := c.validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzKey(f *testing.F) {
	f.Add(encodeKey(flow4()))
	f.Add(encodeKey(flow6()))
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, err := decodeKey(b)
		if err != nil {
			return
		}
		again, err := decodeKey(encodeKey(flow))
		if err != nil || again != flow {
			t.Errorf("%x: %v, then %v, %v", b, flow, again, err)
		}
	})
}

func TestInBoth(t *testing.T) {
	type list = map[tcprepair.Flow]gate.RouteInfo
	one, other := gate.RouteInfo{Node: 1, Epoch: 2}, gate.RouteInfo{Node: 1, Epoch: 3}
	for _, tt := range []struct {
		name       string
		a, b, want list
	}{
		{"the first list", nil, list{flow4(): one}, list{}},
		{"missing twice", list{flow4(): one, flow6(): other}, list{flow4(): one}, list{flow4(): one}},
		{"moved meanwhile", list{flow4(): one}, list{flow4(): other}, list{}},
	} {
		if diff := cmp.Diff(tt.want, inBoth(tt.a, tt.b), cmpopts.EquateComparable(tcprepair.Flow{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}
