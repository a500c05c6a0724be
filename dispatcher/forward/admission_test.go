// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

func TestAdmission(t *testing.T) {
	for _, vip := range []netip.AddrPort{flow4().Local, flow6().Local} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{MaxFlows: 10000, Divert: true})
			next := uint16(0)
			fresh := func() tcprepair.Flow {
				next++
				client := flow4().Remote.Addr()
				if !vip.Addr().Is4() {
					client = flow6().Remote.Addr()
				}
				return tcprepair.NewFlow(vip, netip.AddrPortFrom(client, 1000+next))
			}
			for _, of := range []*Flows{s.Flows, s.UDP()} {
				if err := of.SetService(vip, []gate.Node{node}); err != nil {
					t.Fatal(err)
				}
			}
			set := func(of *Flows, a Admission) {
				t.Helper()
				if err := of.SetAdmission(vip, a); err != nil {
					t.Fatal(err)
				}
			}
			expect := func(when string, f tcprepair.Flow, proto, flags byte, want verdict) {
				t.Helper()
				if got, _ := s.execute(t, mode, packetOf(s.mac, f, proto, flags, 10)); got != want {
					t.Errorf("%v, %v, %s: %s, want %s", vip, mode, when, got, want)
				}
			}
			oldTCP, oldUDP := fresh(), fresh()
			expect("before", oldTCP, protoTCP, syn, redirected)
			expect("before", oldUDP, protoUDP, 0, redirected)
			// Nothing new comes in, and what is there goes on.
			set(s.Flows, Admission{New: 1})
			set(s.UDP(), Admission{New: 1})
			refused := fresh()
			expect("SYN refused", refused, protoTCP, syn, dropped)
			expect("datagram refused", refused, protoUDP, 0, dropped)
			if _, err := s.Route(refused); !errors.Is(err, gate.ErrNoFlow) {
				t.Errorf("a refused flow is known: %v", err)
			}
			expect("SYN repeated", oldTCP, protoTCP, syn, redirected)
			expect("segment", oldTCP, protoTCP, ack, redirected)
			expect("datagram", oldUDP, protoUDP, 0, redirected)
			expect("SYN of a used port", oldTCP, protoTCP, syn, dropped)
			// The service's configuration does not touch it.
			if err := s.SetService(vip, []gate.Node{node, node}); err != nil {
				t.Fatal(err)
			}
			if err := s.UDP().SetHandling(vip, Handling{Divert: true}); err != nil {
				t.Fatal(err)
			}
			s.reading(t, time.Minute)
			expect("SYN refused", fresh(), protoTCP, syn, dropped)
			expect("undecided datagram refused", fresh(), protoUDP, 0, dropped)
			// An announced flow is established from its first packet on.
			promised := fresh()
			if err := s.Announce(Announcement{
				Client: promised.Remote, Server: promised.Local, Protocol: protoUDP, Node: node, Service: Service{vip, protoUDP},
			}); err != nil {
				t.Fatal(err)
			}
			expect("announced", promised, protoUDP, 0, redirected)
			set(s.UDP(), Admission{Established: 1})
			expect("datagram degraded", oldUDP, protoUDP, 0, dropped)
			expect("announced, degraded", promised, protoUDP, 0, dropped)
			next++ // a first datagram is no established one
			expect("first datagram", fresh(), protoUDP, 0, redirected)
			set(s.Flows, Admission{Established: 1})
			expect("segment spared", oldTCP, protoTCP, ack, redirected)
			set(s.Flows, Admission{Established: 1, Segments: true})
			expect("segment degraded", oldTCP, protoTCP, ack, dropped)
			expect("SYN not degraded", fresh(), protoTCP, syn, redirected)
			adopted := fresh()
			if _, err := s.Adopt(adopted, 1, node); err != nil {
				t.Fatal(err)
			}
			expect("adopted segment degraded", adopted, protoTCP, ack, dropped)
			stats, err := s.UDP().ServiceStats(vip)
			if err != nil || stats.Refused != 2 || stats.Degraded != 2 || stats.Secondary != 1 {
				t.Errorf("UDP: %+v, %v", stats, err)
			}
			if stats, err = s.ServiceStats(vip); err != nil || stats.Refused != 3 || stats.Degraded != 2 {
				t.Errorf("TCP: %+v, %v", stats, err)
			}
			if sum := s.Stats(); sum.Refused != 5 || sum.Degraded != 4 {
				t.Errorf("%+v", sum)
			}
			set(s.Flows, Admission{})
			set(s.UDP(), Admission{})
			expect("over", oldTCP, protoTCP, ack, redirected)
			expect("over", oldUDP, protoUDP, 0, redirected)
		}
	}
}

// Of n packets about p*n are refused: within five standard deviations, which chance exceeds once in two million runs.
func TestAdmissionShare(t *testing.T) {
	s := newStand(t, Config{})
	f := flow4()
	if err := s.UDP().SetService(f.Local, []gate.Node{node}); err != nil {
		t.Fatal(err)
	}
	first := packetOf(s.mac, f, protoUDP, 0, 10)
	send := func(n int) (before, after ServiceStats) {
		before, err := s.UDP().ServiceStats(f.Local)
		if err != nil {
			t.Fatal(err)
		}
		s.host.do(t, func() error {
			_, _, err := s.table.objects.RehomeForward.Benchmark(first, n, nil)
			return err
		})
		after, err = s.UDP().ServiceStats(f.Local)
		if err != nil {
			t.Fatal(err)
		}
		return before, after
	}
	if err := s.table.objects.Ports.Put(uint32(1), forwardPort{Ifindex: 1}); err != nil {
		t.Fatal(err)
	}
	copy(first, make([]byte, 6)) // BPF_PROG_RUN is on lo, whose address is zero
	if err := s.SetNode(node, 1, nodeMAC(), make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	const n = 1 << 16
	for _, p := range []float64{0.001, 0.25, 0.5, 0.9} {
		if err := s.UDP().SetAdmission(f.Local, Admission{Established: p}); err != nil {
			t.Fatal(err)
		}
		// The frame keeps the addresses that the first run has given it: it is the loop check's, and not ours to count.
		before, after := send(n)
		got, want, limit := float64(after.Degraded-before.Degraded), p*n, 5*math.Sqrt(n*p*(1-p))
		if math.Abs(got-want) > limit+1 {
			t.Errorf("p = %v: %v of %d refused, want %v +- %.0f", p, got, n, want, limit)
		}
	}
}

func TestAdmissionErrors(t *testing.T) {
	s := newStand(t, Config{})
	for _, a := range []Admission{{New: -0.1}, {New: 1.1}, {Established: math.NaN()}, {Established: math.Inf(1)}} {
		var op *OpError
		if err := s.SetAdmission(flow4().Local, a); !errors.As(err, &op) {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

func TestFixedPoint(t *testing.T) {
	for p, want := range map[float64]uint32{0: 0, 1: math.MaxUint32, 0.5: 1 << 31, 0x1p-32: 1, 0x1p-33: 0, 1 - 0x1p-40: math.MaxUint32} {
		if got := fixedPoint(p); got != want {
			t.Errorf("%v: %#x, want %#x", p, got, want)
		}
	}
}

// Numbers of services: each its own, found again, given back and used late.
func TestServiceNumbers(t *testing.T) {
	path := bpffs(t)
	h := network(t, 1)[0]
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 100}
	f, err := h.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	vip := func(i int) netip.AddrPort { return netip.AddrPortFrom(flow4().Local.Addr(), uint16(i+1)) }
	for i := range 10 {
		if err := f.SetService(vip(i), []gate.Node{1}); err != nil {
			t.Fatal(err)
		}
		if n := f.number(vip(i)); n != uint16(i+1) {
			t.Errorf("service %d has number %d", i, n)
		}
	}
	if err := f.RemoveService(vip(3)); err != nil {
		t.Fatal(err)
	}
	if err := f.UDP().SetService(vip(3), nil); err != nil {
		t.Fatal(err)
	}
	if n := f.UDP().number(vip(3)); n != 11 || f.number(vip(3)) != 0 {
		t.Errorf("the next number is %d, the removed service's %d", n, f.number(vip(3)))
	}
	if err := f.SetAdmission(vip(5), Admission{New: 0.5}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = h.open(t, config); err != nil {
		t.Fatal(err)
	}
	defer f.Remove()
	for i := range 10 {
		want := uint16(i + 1)
		if i == 3 {
			want = 0
		}
		if n := f.number(vip(i)); n != want {
			t.Errorf("after a restart service %d has number %d, want %d", i, n, want)
		}
	}
	var word [8]byte
	if _, err := f.table.policies.ReadAt(word[:], 6*policySize); err != nil || word != [8]byte{3: 0x80} {
		t.Errorf("the admission after a restart: %x, %v", word, err)
	}
	if err := f.SetService(vip(20), nil); err != nil || f.number(vip(20)) != 12 {
		t.Errorf("the next number after a restart: %d, %v", f.number(vip(20)), err)
	}
	// All numbers: the round comes back to the one that is free.
	var v forwardService
	f.table.numbers.last = MaxServices - 1
	for i := 100; i < 102; i++ {
		if err := f.SetService(vip(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.number(vip(101)); n != 4 {
		t.Errorf("after the last comes %d, want 4", n)
	}
	if err := f.table.objects.Services.Lookup(f.serviceKey(vip(101)), &v); err != nil || v.Id != 4 {
		t.Errorf("%+v, %v", v, err)
	}
	if got, err := f.ServiceStats(vip(200)); err != nil || got != (ServiceStats{}) {
		t.Errorf("of an unknown service: %+v, %v", got, err)
	}
	if cpus, err := ebpf.PossibleCPU(); err != nil || cpus < 1 {
		t.Error(cpus, err)
	}
}
