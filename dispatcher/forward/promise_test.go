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

// compareAddresses is for values with netip's in them.
func compareAddresses() cmp.Option {
	return cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}, tcprepair.Flow{})
}

// open is the address without its port.
func open(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 0) }

// scanAll collects what Scan knows, by flow and protocol.
func (s *stand) scanAll(t testing.TB) map[Service]map[tcprepair.Flow]Known {
	t.Helper()
	all := make(map[Service]map[tcprepair.Flow]Known)
	into := make([]Known, 100)
	for at, steps := Cursor(0), 0; ; steps++ {
		n, next, err := s.Scan(at, into)
		if err != nil || steps > 1<<20 {
			t.Fatal(steps, err)
		}
		for _, k := range into[:n] {
			of := Service{Protocol: k.Protocol}
			if all[of] == nil {
				all[of] = make(map[tcprepair.Flow]Known)
			}
			if _, twice := all[of][k.Flow]; twice {
				t.Errorf("%v came twice", k.Flow)
			}
			all[of][k.Flow] = k
		}
		if next == 0 {
			return all
		}
		at = next
	}
}

// events collects what Watch tells, until the test ends.
func (s *stand) events(t testing.TB) <-chan Event {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events, done := make(chan Event, 1<<14), make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(e Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return events
}

func (s *stand) twoNodes(t testing.TB) {
	t.Helper()
	for _, n := range []gate.Node{1, 2} {
		if err := s.SetNode(n, s.host.index(t), net.HardwareAddr{2, 0, 0, 0, 0, byte(n)}, s.mac); err != nil {
			t.Fatal(err)
		}
	}
}

// Each kind of announcement, and each kind of first packet.
func TestAnnouncements(t *testing.T) {
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, mode := range []Mode{TCX, XDP} {
			s := newStand(t, Config{})
			s.twoNodes(t)
			events := s.events(t)
			// The service takes what nobody has announced.
			for _, of := range []*Flows{s.Flows, s.UDP()} {
				if err := of.SetService(f.Local, []gate.Node{2}); err != nil {
					t.Fatal(err)
				}
			}
			elsewhere := tcprepair.NewFlow(netip.AddrPortFrom(f.Local.Addr(), 7000), f.Remote)
			other := tcprepair.NewFlow(netip.AddrPortFrom(f.Local.Addr(), 7002), netip.AddrPortFrom(f.Remote.Addr(), 9))
			for _, c := range []struct {
				name      string
				announced Announcement
				flow      tcprepair.Flow
				proto     byte
				flags     byte
				want      byte // node; 0: passes
			}{
				{"UDP, both ports", Announcement{Client: elsewhere.Remote, Server: elsewhere.Local, Protocol: protoUDP}, elsewhere, protoUDP, 0, 1},
				{"UDP, before its service", Announcement{Client: f.Remote, Server: f.Local, Protocol: protoUDP}, f, protoUDP, 0, 1},
				{"UDP, any client port", Announcement{Client: open(other.Remote), Server: other.Local, Protocol: protoUDP}, other, protoUDP, 0, 1},
				{"UDP, any server port", Announcement{Client: other.Remote, Server: open(other.Local), Protocol: protoUDP}, other, protoUDP, 0, 1},
				{"TCP, passive", Announcement{Client: open(other.Remote), Server: other.Local, Protocol: protoTCP}, other, protoTCP, syn, 1},
				{"TCP, active", Announcement{Client: other.Remote, Server: open(other.Local), Protocol: protoTCP}, other, protoTCP, syn | ack, 1},
				{"TCP, a SYN before its service", Announcement{Client: f.Remote, Server: f.Local, Protocol: protoTCP}, f, protoTCP, syn, 1},
				{"TCP, not by an acknowledgement", Announcement{Client: other.Remote, Server: other.Local, Protocol: protoTCP}, other, protoTCP, ack, 0},
				{"TCP, not by a reset", Announcement{Client: other.Remote, Server: other.Local, Protocol: protoTCP}, other, protoTCP, syn | rst, 0},
				{"other protocol", Announcement{Client: other.Remote, Server: other.Local, Protocol: protoUDP}, other, protoTCP, syn, 0},
				{"other client port", Announcement{Client: elsewhere.Remote, Server: open(other.Local), Protocol: protoUDP}, other, protoUDP, 0, 0},
				{"other server port", Announcement{Client: open(other.Remote), Server: elsewhere.Local, Protocol: protoUDP}, other, protoUDP, 0, 0},
				{"lapsed", Announcement{Client: other.Remote, Server: other.Local, Protocol: protoUDP, Lifetime: 1}, other, protoUDP, 0, 0},
			} {
				a := c.announced
				a.Node, a.Tag = 1, 0xabcdef0123456789
				if err := s.Announce(a); err != nil {
					t.Fatalf("%s: %v", c.name, err)
				}
				if a.Lifetime == 1 {
					time.Sleep(20 * time.Millisecond) // BPF's coarse clock lags by up to a jiffy, 10 ms at most
				}
				before := s.Stats()
				got, out := s.execute(t, mode, packetOf(s.mac, c.flow, c.proto, c.flags, 20))
				want := redirected
				if c.want == 0 {
					want = passed
				}
				if got != want || got == redirected && out[5] != c.want {
					t.Errorf("%v, %v, %s: %s to %x", f.Local, mode, c.name, got, out[:6])
				}
				if c.want == 0 {
					if got := s.Stats().Secondary - before.Secondary; got != 0 {
						t.Errorf("%s: %d secondary flows", c.name, got)
					}
				} else {
					e := <-events
					wantEvent := Event{Flow: c.flow, Protocol: c.proto, Node: 1, Client: a.Client, Server: a.Server, Tag: a.Tag}
					if d := cmp.Diff(wantEvent, e, compareAddresses()); d != "" {
						t.Errorf("%s: %s", c.name, d)
					}
					k := s.scanAll(t)[Service{Protocol: c.proto}][c.flow]
					if !k.Secondary || k.Node != 1 || k.Epoch != 1 || k.Packets != 1 {
						t.Errorf("%s: Scan finds %+v", c.name, k)
					}
					// Later packets follow, whatever becomes of the announcement.
					if err := s.Withdraw(a); err != nil {
						t.Fatal(err)
					}
					if got, out := s.execute(t, mode, packetOf(s.mac, c.flow, c.proto, ack, 20)); got != redirected || out[5] != 1 {
						t.Errorf("%s: second packet: %s to %x", c.name, got, out[:6])
					}
					if err := s.of(c.proto).Forget(c.flow); err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Withdraw(a); err != nil {
					t.Fatal(err)
				}
				if len(events) > 0 {
					t.Errorf("%s: another event: %+v", c.name, <-events)
				}
			}
		}
	}
}

// An announcement decides anew about a flow that is left from before, and a SYN-ACK repeated does not.
func TestAnnounceOverKnown(t *testing.T) {
	for _, mode := range []Mode{TCX, XDP} {
		s := newStand(t, Config{})
		s.twoNodes(t)
		f := flow4()
		if _, err := s.UDP().Adopt(f, 5, 2); err != nil {
			t.Fatal(err)
		}
		a := Announcement{Client: f.Remote, Server: f.Local, Protocol: protoUDP, Node: 1}
		if err := s.Announce(a); err != nil {
			t.Fatal(err)
		}
		if got, out := s.execute(t, mode, packetOf(s.mac, f, protoUDP, 0, 0)); got != redirected || out[5] != 1 {
			t.Errorf("%s to %x, want node 1", got, out[:6])
		}
		// The same once more changes nothing.
		if err := s.Announce(a); err != nil {
			t.Fatal(err)
		}
		if r, err := s.UDP().Route(f); err != nil || r.Node != 1 || r.Forwarded != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		a.Protocol, a.Server = protoTCP, open(a.Server)
		if err := s.Announce(a); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got, out := s.execute(t, mode, packetOf(s.mac, f, protoTCP, syn|ack, 0)); got != redirected || out[5] != 1 {
				t.Errorf("SYN-ACK: %s to %x, want node 1", got, out[:6])
			}
		}
		if got := s.Stats().Secondary; got != 2 {
			t.Errorf("%d secondary flows, want 2", got)
		}
		if got, _ := s.execute(t, mode, packetOf(s.mac, f, protoTCP, ack, 0)); got != redirected {
			t.Errorf("ACK: %s", got)
		}
		if _, err := s.Commit(f, 1, 2); err != nil {
			t.Errorf("a secondary flow moves: %v", err)
		}
		if k := s.scanAll(t)[Service{Protocol: protoTCP}][f]; !k.Secondary || k.Node != 2 || k.Epoch != 2 {
			t.Errorf("after its move: %+v", k)
		}
	}
}

// Without a reader of events nothing is lost: packets go on, it is counted, and the table tells.
func TestEventsOverflow(t *testing.T) {
	s := newStand(t, Config{MaxFlows: 10000})
	f := flow4()
	if err := s.SetService(f.Local, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Announce(Announcement{
		Client: open(f.Remote), Server: f.Local, Protocol: protoUDP, Node: node, Service: Service{f.Local, protoTCP},
	}); err != nil {
		t.Fatal(err)
	}
	const flows = 5000
	for i := range flows {
		f := tcprepair.NewFlow(f.Local, netip.AddrPortFrom(f.Remote.Addr(), uint16(1000+i)))
		if got, _ := s.execute(t, Mode(i%2), packetOf(s.mac, f, protoUDP, 0, 0)); got != redirected {
			t.Fatalf("flow %d: %s", i, got)
		}
	}
	events := s.events(t)
	var told uint64
	eventually(t, "all that fitted into the ring", func() bool {
		for ; len(events) > 0; told++ {
			<-events
		}
		return told+s.Stats().Untold == flows
	})
	stats := s.Stats()
	if stats.Untold == 0 || stats.Secondary != flows {
		t.Errorf("%d told, %+v", told, stats)
	}
	secondary := 0
	for _, k := range s.scanAll(t)[Service{Protocol: protoUDP}] {
		if k.Secondary && k.Node == node {
			secondary++
		}
	}
	if secondary != flows {
		t.Errorf("Scan finds %d", secondary)
	}
	if of, err := s.ServiceStats(f.Local); err != nil || of.Secondary != flows {
		t.Errorf("%+v, %v", of, err)
	}
}

func TestExpire(t *testing.T) {
	s := newStand(t, Config{})
	f := flow6()
	lasting := Announcement{Client: f.Remote, Server: f.Local, Protocol: protoUDP, Node: node}
	const many = 3000
	for i := range many {
		short := Announcement{
			Client: f.Remote, Server: netip.AddrPortFrom(f.Local.Addr(), uint16(1000+i)), Protocol: protoTCP, Node: node, Lifetime: time.Millisecond,
		}
		if err := s.Announce(short); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Announce(lasting); err != nil {
		t.Fatal(err)
	}
	count := func() (n int) {
		var k forwardKey
		var p forwardPromise
		at := s.table.objects.Promises.Iterate()
		for at.Next(&k, &p) {
			n++
		}
		if err := at.Err(); err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "all but one are removed", func() bool {
		if err := s.expire(); err != nil {
			t.Fatal(err)
		}
		return count() == 1
	})
	if got, _ := s.execute(t, TCX, packetOf(s.mac, f, protoUDP, 0, 0)); got != redirected {
		t.Errorf("the one that lasts: %s", got)
	}
}

func TestAnnounceErrors(t *testing.T) {
	s := newStand(t, Config{MaxAnnounced: 2})
	f, g := flow4(), flow6()
	for name, a := range map[string]Announcement{
		"two families":    {Client: f.Remote, Server: g.Local, Protocol: protoUDP},
		"no client":       {Server: g.Local, Protocol: protoUDP},
		"no port":         {Client: open(f.Remote), Server: open(f.Local), Protocol: protoUDP},
		"ICMP":            {Client: f.Remote, Server: f.Local, Protocol: 1},
		"no such node":    {Client: f.Remote, Server: f.Local, Protocol: protoUDP, Node: MaxNodes},
		"too long":        {Client: f.Remote, Server: f.Local, Protocol: protoUDP, Lifetime: 30 * 24 * time.Hour},
		"without Divert":  {Client: f.Remote, Server: f.Local, Protocol: protoUDP, Inspect: true},
		"in the past":     {Client: f.Remote, Server: f.Local, Protocol: protoUDP, Lifetime: -1},
		"no such address": {},
	} {
		var op *OpError
		if err := s.Announce(a); !errors.As(err, &op) {
			t.Errorf("%s: %v", name, err)
		}
	}
	full := error(nil)
	for i := range 300 {
		if full = s.Announce(Announcement{Client: f.Remote, Server: netip.AddrPortFrom(f.Local.Addr(), uint16(1+i)), Protocol: protoUDP}); full != nil {
			break
		}
	}
	if !errors.Is(full, ErrFull) {
		t.Errorf("more than MaxAnnounced: %v", full)
	}
}

func TestDecodeEvent(t *testing.T) {
	for name, b := range map[string][]byte{"short": make([]byte, eventSize-1), "no family": make([]byte, eventSize)} {
		if e, err := decodeEvent(b); err == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// FuzzEvent reads arbitrary events.
func FuzzEvent(f *testing.F) {
	sound := make([]byte, eventSize)
	copy(sound[32:], []byte{0x0f, 0xa0, 0, 80, protoUDP, keyFamily4, 0, 0, 0, 0, 0, 80, node})
	f.Add(sound)
	f.Add(append(sound[:37:37], append([]byte{keyFamily6}, sound[38:]...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEvent(b)
		if err != nil {
			return
		}
		if e.Flow.Local.Addr() != e.Server.Addr() || e.Flow.Remote.Addr() != e.Client.Addr() || e.Protocol != b[36] {
			t.Errorf("%+v", e)
		}
	})
}
