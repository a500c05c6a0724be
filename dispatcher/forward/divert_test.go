// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// reading has the programs believe that somebody reads the tap, for a time.
func (s *stand) reading(t testing.TB, d time.Duration) {
	t.Helper()
	until := uint64(0)
	if d > 0 {
		until = uint64(monotonic() + d)
	}
	if err := s.table.setReading(until); err != nil {
		t.Fatal(err)
	}
}

// label is what a diverted frame says of itself; nil if it says nothing.
func label(t testing.TB, frame []byte) *Diverted {
	t.Helper()
	d, _, segments, ok := decodeDiverted(bytes.Clone(frame))
	if !ok {
		return nil
	}
	if segments != 1 || d.last != (d.Reason != Inspected) {
		t.Errorf("a frame of %d segments, last %v", segments, d.last)
	}
	return &d
}

// Who forgets what waits for a decision cannot decide it any more, until its next packet.
func TestForgottenUndecided(t *testing.T) {
	f := flow4()
	s := newStand(t, Config{Divert: true})
	if err := s.SetHandling(f.Local, Handling{Divert: true, Inspect: true}); err != nil {
		t.Fatal(err)
	}
	s.reading(t, time.Minute)
	for _, when := range []string{"first", "repeated"} {
		got, out := s.execute(t, TCX, packetOf(s.mac, f, protoTCP, syn, 0))
		if d := label(t, out); got != redirected || d == nil || d.Reason != Undecided {
			t.Fatalf("%s: %s, %+v", when, got, d)
		}
		if when == "repeated" {
			break
		}
		if err := s.Forget(f); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Assign(f, 1, true); !errors.Is(err, gate.ErrNoFlow) {
			t.Errorf("Assign of a forgotten flow: %v", err)
		}
	}
	if _, err := s.Assign(f, 1, true); err != nil {
		t.Errorf("Assign: %v", err)
	}
}

// A flow that user space decides about, from its first datagram to the short way.
func TestUndecided(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{Divert: true})
			udp, payload := s.UDP(), 20
			if err := udp.SetHandling(f.Local, Handling{Divert: true, MaxWaiting: 5}); err != nil {
				t.Fatal(err)
			}
			send := func() (verdict, *Diverted) {
				got, out := s.execute(t, mode, packetOf(s.mac, f, protoUDP, 0, payload))
				return got, label(t, out)
			}
			expect := func(when string, want verdict, reason Reason, owner gate.Node, number uint16) {
				t.Helper()
				got, d := send()
				if got != want || reason == 0 && d != nil {
					t.Fatalf("%v, %v, %s: %s, %+v; want %s", f.Local, mode, when, got, d, want)
				}
				if reason == 0 {
					return
				}
				wanted := Diverted{Reason: reason, Flow: f, Protocol: protoUDP, Node: owner, Payload: make([]byte, payload), number: number}
				if diff := cmp.Diff(&wanted, d, compareAddresses(), cmp.AllowUnexported(Diverted{}), cmpopts.IgnoreFields(Diverted{}, "frame", "at", "port", "last")); diff != "" {
					t.Fatalf("%v, %v, %s: %s", f.Local, mode, when, diff)
				}
			}
			release := func(number uint16, want error) {
				t.Helper()
				ops := []operation{udp.operation(forwardCodeOP_RELEASE, f)}
				ops[0].epoch = uint32(number)
				if err := errors.Join(udp.run(ops), ops[0].err()); !errors.Is(err, want) || want == nil && err != nil {
					t.Fatalf("release after %d: %v, want %v", number, err, want)
				}
			}
			// Nobody reads: dropped, and nothing recorded.
			expect("dead", dropped, 0, 0, 0)
			if _, err := udp.Route(f); !errors.Is(err, gate.ErrNoFlow) {
				t.Errorf("recorded: %v", err)
			}
			s.reading(t, time.Minute)
			expect("first", redirected, Undecided, 0, 1)
			expect("second", redirected, Undecided, 0, 2)
			if k := s.scanAll(t)[Service{Protocol: protoUDP}][f]; !k.Undecided || k.Epoch != 1 {
				t.Errorf("%+v", k)
			}
			release(2, gate.ErrBusy) // undecided
			s.reading(t, 0)
			expect("died", dropped, 0, 0, 0)
			s.reading(t, time.Minute)
			if r, err := udp.Assign(f, node, false); err != nil || r.Node != node || r.Epoch != 2 {
				t.Fatalf("Assign: %+v, %v", r, err)
			}
			if r, err := udp.Assign(f, 1, false); !errors.Is(err, gate.ErrExists) || r.Node != node {
				t.Errorf("second Assign: %+v, %v", r, err)
			}
			expect("decided", redirected, Waiting, node, 3)
			release(2, gate.ErrBusy)
			s.reading(t, 0)
			expect("decided, and died", redirected, 0, 0, 0)
			s.reading(t, time.Minute)
			release(3, nil)
			release(3, nil) // no harm
			expect("short way", redirected, 0, 0, 0)
			if r, err := udp.Route(f); err != nil || r.Forwarded != 2 {
				t.Errorf("%+v, %v: want 2 packets", r, err)
			}
			if _, err := udp.Commit(f, 2, 3); err != nil {
				t.Errorf("Commit: %v", err)
			}
			// The next flow has its first datagram cut, and the one after that too many.
			if err := udp.Forget(f); err != nil {
				t.Fatal(err)
			}
			expect("after Forget", redirected, Undecided, 0, 1)
			expect("the fifth", redirected, Undecided, 0, 2)
			expect("too many", dropped, 0, 0, 0)
			id := s.table.numbers.find(udp.serviceKey(f.Local))
			if err := s.table.accountFor(id, 1, false); err != nil {
				t.Fatal(err)
			}
			expect("room for one", redirected, Undecided, 0, 4)
			expect("room for none", dropped, 0, 0, 0)
			if err := s.table.accountFor(id, 0, true); err != nil {
				t.Fatal(err)
			}
			payload = 0
			expect("an empty datagram, and room", redirected, Undecided, 0, 6)
			stats, err := udp.ServiceStats(f.Local)
			if want := (ServiceStats{Assigned: 2, Diverted: 7, Crowded: 2}); err != nil || stats != want {
				t.Errorf("%+v, %v, want %+v", stats, err, want)
			}
			if got := s.Stats(); got.Diverted != 7 || got.Crowded != 2 || got.Unread != 2 {
				t.Errorf("%+v", got)
			}
			// Numbers come round.
			for i := range 2*maxDivertQueue + 100 {
				if _, d := send(); d == nil || d.number != uint16(7+i)&0x7ff {
					t.Fatalf("datagram %d: %+v", i, d)
				}
				if err := s.table.accountFor(id, 0, true); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// What is diverted of a signalling flow, and what is not.
func TestInspected(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{Divert: true})
			for _, of := range []*Flows{s.Flows, s.UDP()} {
				if err := of.SetHandling(f.Local, Handling{Inspect: true}); err != nil {
					t.Fatal(err)
				}
				if _, err := of.Adopt(f, 1, 0); err != nil {
					t.Fatal(err)
				}
			}
			tcp := func(flags byte, n int) []byte { return packetOf(s.mac, f, protoTCP, flags, n) }
			udp := func(n int) []byte { return packetOf(s.mac, f, protoUDP, 0, n) }
			fragment := ethernet(s.mac, etherIPv4, ip4(f, protoUDP, nil, 0x2000, patch(datagram(f, 100), 5, 250)))
			if f == flow6() {
				fragment = ethernet(s.mac, etherIPv6, ip6(f, protoUDP, patch(datagram(f, 100), 5, 250), extension{44, []byte{0, 0, 1, 0, 0, 0, 9}}))
			}
			padded := append(tcp(ack, 0), make([]byte, 6)...)
			check := func(when string, frame []byte, want verdict, diverted bool) {
				t.Helper()
				got, out := s.execute(t, mode, frame)
				d := label(t, out)
				if got != want || diverted != (d != nil) {
					t.Errorf("%v, %v, %s: %s, %+v", f.Local, mode, when, got, d)
				}
				if d != nil && d.Protocol == protoTCP && (d.Sequence != 1 || d.Flags != frame[len(frame)-len(d.Payload)-20+13]) {
					t.Errorf("%v, %v, %s: %+v", f.Local, mode, when, d)
				}
				if d != nil && (d.Reason != Inspected || d.Node != node || !bytes.Equal(d.frame[12:], frame[12:])) {
					t.Errorf("%v, %v, %s: %+v", f.Local, mode, when, d)
				}
			}
			s.reading(t, time.Minute)
			if err := errors.Join(s.Inspect(f, true), s.UDP().Inspect(f, true)); err != nil {
				t.Fatal(err)
			}
			check("the dispatcher's own", tcp(ack, 10), passed, false)
			check("the dispatcher's own", udp(10), passed, false)
			for _, of := range []*Flows{s.Flows, s.UDP()} {
				if _, err := of.Commit(f, 1, node); err != nil {
					t.Fatal(err)
				}
			}
			check("segment", tcp(ack, 10), redirected, true)
			check("one byte", tcp(ack, 1), redirected, true)
			check("acknowledgement", tcp(ack, 0), redirected, false)
			check("padded acknowledgement", padded, redirected, false)
			check("FIN", tcp(ack|fin, 0), redirected, true)
			check("RST", tcp(rst, 0), redirected, true)
			check("datagram", udp(10), redirected, true)
			check("empty datagram", udp(0), redirected, true)
			if got, out := s.execute(t, mode, fragment); got != redirected || !tapped(out, Inspected, false) {
				t.Errorf("%v, %v, fragment: %s, %x", f.Local, mode, got, out[:14])
			}
			check("error", errorAbout(s, f), redirected, false)
			s.reading(t, 0)
			check("nobody reads", tcp(ack, 10), redirected, false)
			check("nobody reads", udp(10), redirected, false)
			s.reading(t, time.Minute)
			if err := s.Inspect(f, false); err != nil {
				t.Fatal(err)
			}
			check("no longer", tcp(ack, 10), redirected, false)
			check("the other protocol's flow", udp(10), redirected, true)
			if got := s.Stats(); got.Diverted != 8 || got.Split != 1 || got.Unread != 0 {
				t.Errorf("%+v", got)
			}
			// A new flow of the service is signalling by itself.
			if err := s.SetService(f.Local, []gate.Node{node}); err != nil {
				t.Fatal(err)
			}
			check("SYN", tcp(syn, 0), redirected, true)
			check("acknowledgement", tcp(ack, 0), redirected, false)
			check("segment", tcp(ack, 5), redirected, true)
			if err := s.Inspect(f, true); err != nil {
				t.Errorf("once more: %v", err)
			}
			if err := s.Forget(f); err != nil {
				t.Fatal(err)
			}
			if err := s.Inspect(f, true); !errors.Is(err, gate.ErrNoFlow) {
				t.Errorf("forgotten: %v", err)
			}
		}
	}
}

func errorAbout(s *stand, f tcprepair.Flow) []byte {
	if f == flow4() {
		return icmp(s.mac, f, 3, 4, ip4(reversed(f), protoTCP, nil, 0, segment(reversed(f), ack, 0)))
	}
	return icmp(s.mac, f, 2, 0, ip6(reversed(f), protoTCP, segment(reversed(f), ack, 0)))
}

// tapped reports whether a frame has a label for user space with that reason.
func tapped(frame []byte, r Reason, counted bool) bool {
	return frame[0] == 2 && frame[6] == 2 && Reason(frame[1]&^reasonCounted) == r && frame[1]&reasonCounted != 0 == counted
}

// The fragments of a first datagram come by user space, the later ones after the first and only those of its own; when nobody reads, none goes on.
func TestUndecidedFragment(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		for _, f := range []tcprepair.Flow{flow4(), flow6()} {
			s := newStand(t, Config{Divert: true})
			if err := s.UDP().SetHandling(f.Local, Handling{Divert: true}); err != nil {
				t.Fatal(err)
			}
			frames, others := pieces(f, 1, long(f, 300), 104), pieces(f, 2, long(f, 300), 104)
			for i := range frames {
				copy(frames[i], s.mac)
				copy(others[i], s.mac)
			}
			check := func(what string, frame []byte, want verdict, r Reason) {
				t.Helper()
				got, out := s.execute(t, mode, frame)
				if got != want || r != 0 && !tapped(out, r, r == Undecided) {
					t.Errorf("%v, %v, %s: %s, %x", mode, f.Local, what, got, out[:14])
				}
			}
			check("nobody reads", frames[0], dropped, 0)
			s.reading(t, time.Minute)
			check("a later one ahead of the first", frames[1], passed, 0)
			check("the first", frames[0], redirected, Undecided)
			check("a later one", frames[1], redirected, reasonLater)
			check("the last", frames[2], redirected, reasonLater)
			check("another datagram's", others[2], passed, 0)
			s.reading(t, 0)
			check("nobody reads any more", frames[1], dropped, 0)
			s.reading(t, time.Minute)
			if _, err := s.UDP().Assign(f, node, false); err != nil {
				t.Fatal(err)
			}
			ops := []operation{s.UDP().operation(forwardCodeOP_RELEASE, f)}
			ops[0].epoch = 1 // the first fragment was the first packet that was numbered
			if err := errors.Join(s.UDP().run(ops), ops[0].err()); err != nil {
				t.Fatal(err)
			}
			check("the first, decided", frames[0], redirected, 0)
			check("a later one, decided", frames[1], redirected, 0)
			if got := s.Stats(); got.Split != 1 || got.Unread != 2 {
				t.Errorf("%v, %v: %+v", mode, f.Local, got)
			}
		}
	}
}

// A flow that is assigned as signalling is so from its next packet on, although those before it are still on their way.
func TestAssignInspected(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		s := newStand(t, Config{Divert: true})
		f := flow4()
		if err := s.UDP().SetHandling(f.Local, Handling{Divert: true}); err != nil {
			t.Fatal(err)
		}
		s.reading(t, time.Minute)
		frame := packetOf(s.mac, f, protoUDP, 0, 5)
		s.execute(t, mode, frame)
		if _, err := s.UDP().Assign(f, node, true); err != nil {
			t.Fatal(err)
		}
		for _, last := range []bool{true, false} {
			_, out := s.execute(t, mode, frame)
			d, _, _, ok := decodeDiverted(bytes.Clone(out))
			if !ok || d.Reason != Inspected || d.Node != node || d.last != last {
				t.Errorf("%v: %+v, want one that may release the flow: %v", mode, d, last)
			}
			ops := []operation{s.UDP().operation(forwardCodeOP_RELEASE, f)}
			ops[0].epoch = uint32(d.number)
			if err := errors.Join(s.UDP().run(ops), ops[0].err()); err != nil {
				t.Error(err)
			}
		}
	}
}

// Flows that nobody decides about leave as handshakes do.
func TestUndecidedLapses(t *testing.T) {
	s := newStand(t, Config{Divert: true})
	if err := s.UDP().SetHandling(flow4().Local, Handling{Divert: true}); err != nil {
		t.Fatal(err)
	}
	s.reading(t, time.Minute)
	if got, _ := s.execute(t, TCX, packetOf(s.mac, flow4(), protoUDP, 0, 5)); got != redirected {
		t.Fatal(got)
	}
	never := uint32(1 << 30)
	if c, err := s.table.sweep(4, timeouts{never, never, 0, never}); err != nil || c.dying != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestDivertErrors(t *testing.T) {
	plain, s := newStand(t, Config{}), newStand(t, Config{Divert: true})
	vip := flow4().Local
	for name, err := range map[string]error{
		"SetHandling": plain.UDP().SetHandling(vip, Handling{Divert: true}),
		"inspect":     plain.SetHandling(vip, Handling{Inspect: true}),
		"Divert":      plain.Divert(t.Context(), func(Diverted) {}),
		"Send":        plain.Send(Diverted{}, 1),
	} {
		if !errors.Is(err, ErrNotDiverted) {
			t.Errorf("%s: %v, want ErrNotDiverted", name, err)
		}
	}
	if err := plain.SetHandling(vip, Handling{}); err != nil {
		t.Errorf("handling of nothing: %v", err)
	}
	_, unknown := s.UDP().Assign(flow4(), 1, false)
	if !errors.Is(unknown, gate.ErrNoFlow) {
		t.Errorf("Assign of nothing: %v", unknown)
	}
	if _, err := s.UDP().Adopt(flow4(), 1, 3); err != nil {
		t.Fatal(err)
	}
	if r, err := s.UDP().Assign(flow4(), 1, false); !errors.Is(err, gate.ErrExists) || r.Node != 3 {
		t.Errorf("Assign of a decided flow: %+v, %v", r, err)
	}
	for name, err := range map[string]error{
		"no packet":     s.Send(Diverted{}, 1),
		"no node":       s.Send(Diverted{frame: make([]byte, 60)}, MaxNodes),
		"negative most": s.SetHandling(vip, Handling{MaxWaiting: -1}),
		"no port":       s.SetHandling(netip.AddrPortFrom(vip.Addr(), 0), Handling{}),
	} {
		var op *OpError
		if !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClone(t *testing.T) {
	frame := packetOf(make([]byte, 6), flow4(), protoUDP, 0, 4)
	copy(frame[14+28:], "abcd")
	frame[0], frame[6] = 2, 2
	d, _, _, ok := decodeDiverted(append(slices.Grow([]byte{}, 2000), frame...))
	if !ok {
		t.Fatal("not decoded")
	}
	c := d.Clone()
	clear(d.frame)
	if string(c.Payload) != "abcd" || c.Flow != flow4() || !bytes.Equal(c.frame, frame) {
		t.Errorf("%+v", c)
	}
}

func TestReason(t *testing.T) {
	for r, want := range map[Reason]string{Undecided: "undecided", Waiting: "waiting", Inspected: "inspected", 9: "reason 9"} {
		if r.String() != want {
			t.Errorf("%s, want %s", r, want)
		}
	}
}

// FuzzDiverted reads arbitrary frames.
func FuzzDiverted(f *testing.F) {
	for _, c := range fixtures(make([]byte, 6)) {
		frame := bytes.Clone(c.frame)
		if len(frame) > 6 {
			frame[0], frame[6] = 2, 2
		}
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, _, _, ok := decodeDiverted(b)
		if !ok {
			return
		}
		if !d.Flow.IsValid() || d.Protocol != protoTCP && d.Protocol != protoUDP || !bytes.Equal(d.Payload, b[d.at:][:len(d.Payload)]) {
			t.Errorf("%+v", d)
		}
		if c := d.Clone(); !bytes.Equal(c.Payload, d.Payload) {
			t.Errorf("cloned %x, was %x", c.Payload, d.Payload)
		}
	})
}

// A SYN that user space decides about. Repetitions of it are the same flow's, before the decision and after.
func TestUndecidedSYN(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{Divert: true})
			if err := s.SetHandling(f.Local, Handling{Divert: true}); err != nil {
				t.Fatal(err)
			}
			first, later := packetOf(s.mac, f, protoTCP, syn, 0), packetOf(s.mac, f, protoTCP, ack, 10)
			expect := func(when string, frame []byte, want verdict, reason Reason) {
				t.Helper()
				got, out := s.execute(t, mode, frame)
				d := label(t, out)
				if got != want || (d == nil) != (reason == 0) || d != nil && d.Reason != reason {
					t.Fatalf("%v, %v, %s: %s, %+v; want %s, %v", f.Local, mode, when, got, d, want, reason)
				}
			}
			expect("nobody reads", first, dropped, 0)
			s.reading(t, time.Minute)
			expect("another's segment", later, passed, 0)
			expect("SYN", first, redirected, Undecided)
			expect("the same again", first, redirected, Undecided)
			if r, err := s.Assign(f, node, false); err != nil || r.Epoch != 2 {
				t.Fatalf("%+v, %v", r, err)
			}
			expect("again, decided", first, redirected, Waiting)
			ops := []operation{s.operation(forwardCodeOP_RELEASE, f)}
			ops[0].epoch = 3
			if err := errors.Join(s.run(ops), ops[0].err()); err != nil {
				t.Fatal(err)
			}
			expect("again, sent on", first, redirected, 0)
			expect("established", later, redirected, 0)
			expect("the port used again", first, redirected, Undecided)
		}
	}
}
