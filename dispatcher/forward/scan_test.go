// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Scan finds exactly what there is, with what it has become.
func TestScan(t *testing.T) {
	s := newStand(t, Config{MaxFlows: 5000})
	want := make(map[Service]map[tcprepair.Flow]Known)
	for i := range 2000 {
		f, of := benchFlow(i, i%2 == 1), s.of([]uint8{protoTCP, protoUDP}[i/2%2])
		epoch, owner := uint32(1+i%5), gate.Node(i%7)
		if _, err := of.Adopt(f, epoch, owner); err != nil {
			t.Fatal(err)
		}
		if i%11 == 0 {
			if err := of.Forget(f); err != nil {
				t.Fatal(err)
			}
			continue
		}
		k := Known{Flow: f, Protocol: of.proto, Node: owner, Epoch: epoch}
		if i%13 == 0 {
			if err := of.Inspect(f, true); err != nil {
				t.Fatal(err)
			}
			k.Inspected = true
		}
		if want[Service{Protocol: of.proto}] == nil {
			want[Service{Protocol: of.proto}] = make(map[tcprepair.Flow]Known)
		}
		want[Service{Protocol: of.proto}][f] = k
	}
	if d := cmp.Diff(want, s.scanAll(t), compareAddresses(), cmpopts.EquateComparable(Service{}), cmpopts.IgnoreFields(Known{}, "Idle")); d != "" {
		t.Error(d)
	}
	for range 3 {
		if err := s.sweep(); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(want, s.scanAll(t), compareAddresses(), cmpopts.EquateComparable(Service{}), cmpopts.IgnoreFields(Known{}, "Idle")); d != "" {
		t.Error("after a sweep:", d)
	}
}

func TestScanIdle(t *testing.T) {
	s := newStand(t, Config{})
	if err := s.SetService(flow4().Local, []gate.Node{node}); err != nil {
		t.Fatal(err)
	}
	idle := func() Known { return s.scanAll(t)[Service{Protocol: protoTCP}][flow4()] }
	s.execute(t, TCX, packetOf(s.mac, flow4(), protoTCP, syn, 0))
	if k := idle(); !k.Fresh || k.Closing || k.Packets != 1 {
		t.Errorf("%+v", k)
	}
	eventually(t, "idle time grows", func() bool { return idle().Idle > 30*time.Millisecond })
	s.execute(t, TCX, packetOf(s.mac, flow4(), protoTCP, fin|ack, 0))
	if k := idle(); k.Fresh || !k.Closing || k.Packets != 2 || k.Idle > 25*time.Millisecond {
		t.Errorf("%+v", k)
	}
}

func TestScanErrors(t *testing.T) {
	s := newStand(t, Config{})
	var op *OpError
	if _, _, err := s.Scan(0, make([]Known, lineSlots-1)); !errors.As(err, &op) {
		t.Errorf("too little room: %v", err)
	}
	if n, next, err := s.Scan(1<<40, make([]Known, 100)); n != 0 || next != 0 || err != nil {
		t.Errorf("beyond the end: %d, %d, %v", n, next, err)
	}
	closed := newStand(t, Config{})
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := closed.Scan(0, make([]Known, 100)); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func BenchmarkScan(b *testing.B) {
	h := network(b, 1)[0]
	f := h.forwarder(b, Config{MaxFlows: 1 << 20})
	const flows = 1 << 20
	fill(b, f.Flows, flows, false)
	into := make([]Known, 4096)
	for b.Loop() {
		sum := 0
		for at := Cursor(0); ; {
			n, next, err := f.Scan(at, into)
			if err != nil {
				b.Fatal(err)
			}
			sum += n
			if at = next; next == 0 {
				break
			}
		}
		if sum != flows {
			b.Fatalf("%d flows", sum)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*flows), "ns/flow")
}
