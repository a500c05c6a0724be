// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// setup and setUp are both sides of RTSP's SETUP.
const (
	setup = "SETUP rtsp://cam.example/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=50000-50001\r\n\r\n"
	setUp = "RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 1A2B3C4D;timeout=30\r\nTransport: RTP/AVP;unicast;client_port=50000-50001;server_port=%d-%d\r\n\r\n"
)

func setUpAt(port int) string { return fmt.Sprintf(setUp, port, port+1) }

func media(client string, port, server uint16) session.Key { return udpKey(client, port, server) }

// TestSessionRTSP follows one session from its SYN to its end.
func TestSessionRTSP(t *testing.T) {
	s := newSessionStand(t)
	k := tcpKey(stranger, 40000, 554)
	n := s.connect(k)
	if n == 0 {
		t.Fatal("no server")
	}
	// The second half of the request overtakes the first.
	first, second := setup[:30], setup[30:]
	s.packet(k, 0, s.next[k]+30, second)
	s.packet(k, 0, s.next[k], first)
	s.next[k] += uint32(len(setup))
	if err := s.answer(k, ModeRTSP, setUpAt(6970)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []session.Key{media(stranger, 50000, 6970), media(stranger, 50001, 6971)} {
		a, ok := s.path.announced[k]
		if !ok || a.Node != n || a.Service != (forward.Service{Address: vip(554), Protocol: unix.IPPROTO_TCP}) {
			t.Errorf("%v: announced %t, %+v", k, ok, a)
		}
		// The server waits 30 s, clients pause: the table ends it, not the path.
		if a.Lifetime < 20*time.Minute {
			t.Errorf("the path gives up after %v", a.Lifetime)
		}
		if got := s.packet(k, 0, 0, "rtp"); got != n {
			t.Errorf("media to node %d, signalling to %d", got, n)
		}
	}
	s.packet(k, tcpFIN, s.next[k], "")
	if len(s.signalling) > 0 {
		t.Error("the parser outlives its connection")
	}
	s.packet(k, tcpFIN, s.next[k], "") // again
	if len(s.signalling) > 0 {
		t.Error("a repeated FIN has made a parser")
	}
	s.ended(k.Protocol, flowOf(k))
	s.purge(time.Hour)
	s.empty()
}

// TestSessionSIP sends the next request of a call from another port.
func TestSessionSIP(t *testing.T) {
	s := newSessionStand(t)
	const head = "From: <sip:a@192.0.2.7>;tag=a\r\nTo: <sip:b@203.0.113.10>%s\r\nCall-ID: %s\r\nCSeq: %d %s\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nContent-Length: 0\r\n\r\n"
	request := func(method, tag, call string, n int) string {
		return method + " sip:b@203.0.113.10 SIP/2.0\r\n" + fmt.Sprintf(head, tag, call, n, method)
	}
	for call := range 100 { // more than a session has names for
		id := fmt.Sprintf("call%d@a", call)
		k := udpKey(stranger, 5060, 5060)
		n := s.say(k, request("INVITE", "", id, 1))
		if err := s.answer(k, ModeSIP, "SIP/2.0 200 OK\r\n"+fmt.Sprintf(head, ";tag=b", id, 1, "INVITE")); err != nil {
			t.Fatalf("call %d: %v", call, err)
		}
		if call%10 == 0 {
			elsewhere := udpKey(stranger, 6000+uint16(call), 5060)
			if got := s.say(elsewhere, request("INVITE", ";tag=b", id, 2)); got != n || n == 0 {
				t.Errorf("call %d goes on at node %d, began at %d", call, got, n)
			}
		}
		s.say(k, request("BYE", ";tag=b", id, 3))
		if err := s.answer(k, ModeSIP, "SIP/2.0 200 OK\r\n"+fmt.Sprintf(head, ";tag=b", id, 3, "BYE")); err != nil {
			t.Fatalf("call %d: %v", call, err)
		}
	}
	if total := s.d.backend("b1").active.Load() + s.d.backend("b2").active.Load(); total != 1 {
		t.Errorf("%d sessions, want one", total)
	}
	s.purge(time.Hour)
	s.empty()
}

func passive(port int) string {
	return fmt.Sprintf("227 Entering Passive Mode (203,0,113,10,%d,%d)\r\n", port>>8, port&255)
}

// TestSessionNamed sends a call's next request from another port: it goes to the call's server unless nothing is to stick.
func TestSessionNamed(t *testing.T) {
	const request = "INVITE sip:b@203.0.113.10 SIP/2.0\r\nFrom: <sip:a@192.0.2.7>;tag=a\r\nTo: <sip:b@203.0.113.10>%s\r\nCall-ID: %s\r\n" +
		"CSeq: %d INVITE\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nContent-Length: 0\r\n\r\n"
	const calls = 16
	for sticky, want := range map[Sticky]bool{"": true, StickySession: true, StickyNone: false} {
		s := newSessionStand(t)
		for _, v := range s.d.live.Load().sessions {
			if v.cfg.Mode == ModeSIP {
				v.cfg.Sticky = sticky
			}
		}
		same := 0
		for call := range uint16(calls) {
			id := fmt.Sprintf("call%d@a", call)
			n := s.say(udpKey(stranger, 7000+call, 5060), fmt.Sprintf(request, "", id, 1))
			answer := fmt.Sprintf("SIP/2.0 200 OK\r\nFrom: <sip:a@192.0.2.7>;tag=a\r\nTo: <sip:b@203.0.113.10>;tag=b\r\nCall-ID: %s\r\n"+
				"CSeq: 1 INVITE\r\nVia: SIP/2.0/UDP 192.0.2.7\r\nContent-Length: 0\r\n\r\n", id)
			if err := s.answer(udpKey(stranger, 7000+call, 5060), ModeSIP, answer); err != nil {
				t.Fatal(err)
			}
			if s.say(udpKey(stranger, 8000+call, 5060), fmt.Sprintf(request, ";tag=b", id, 2)) == n {
				same++
			}
		}
		if (same == calls) != want {
			t.Errorf("sticky %q: %d of %d calls stay together", sticky, same, calls)
		}
	}
}

// TestSessionFTP makes more transfers on one control connection than a session may have flows.
func TestSessionFTP(t *testing.T) {
	s := newSessionStand(t)
	k := tcpKey(stranger, 40000, 21)
	n := s.connect(k)
	for i := range maxAnnounced + 10 {
		s.say(k, "PASV\r\n")
		if err := s.answer(k, ModeFTP, passive(30000+i)); err != nil {
			t.Fatalf("transfer %d: %v", i, err)
		}
		data := tcpKey(stranger, 50000+uint16(i), 30000+uint16(i))
		if got := s.packet(data, tcpSYN, 1, ""); got != n || n == 0 {
			t.Fatalf("transfer %d goes to node %d, the control connection to %d", i, got, n)
		}
		s.refresh(time.Now(), []forward.Known{{Flow: flowOf(data), Protocol: data.Protocol, Node: n, Secondary: true, Closing: true}})
		if s.path.flows[data] == nil {
			t.Fatal("the last packets of a transfer have no way")
		}
	}
	if total := s.d.backend("b1").active.Load() + s.d.backend("b2").active.Load(); total != 1 {
		t.Errorf("%d sessions, want one", total)
	}
	s.ended(k.Protocol, flowOf(k))
	s.empty()
}

// TestSessionSticks keeps a client's flows together, in each service.
func TestSessionSticks(t *testing.T) {
	s := newSessionStand(t)
	first := map[string]gate.Node{}
	for port := range uint16(8) {
		for _, client := range []string{stranger, somebody} {
			n := s.say(udpKey(client, 1000+port, 53), "x")
			if first[client] == 0 {
				first[client] = n
			}
			if n != first[client] || n == 0 {
				t.Errorf("%s: port %d to node %d, the first to %d", client, port, n, first[client])
			}
			// A service that b2 alone has must not make the other one change.
			if n := s.say(udpKey(client, 1000+port, 54), "x"); n != s.d.backend("b2").node {
				t.Errorf("%s: to node %d, which does not serve it", client, n)
			}
		}
	}
	if first[stranger] == first[somebody] {
		t.Errorf("both clients on node %d", first[somebody])
	}
	gone := s.d.host(first[stranger])
	gone.link = nil
	if n := s.say(udpKey(stranger, 2000, 53), "x"); n == gone.node || n == 0 {
		t.Errorf("a new flow to node %d, which cannot be asked", n)
	}
}

// TestSessionReusedPort connects again from the same port, whether the end was reported or not.
func TestSessionReusedPort(t *testing.T) {
	for _, reported := range []bool{true, false} {
		s := newSessionStand(t)
		k := tcpKey(stranger, 40000, 554)
		for i := range 4 {
			if n := s.connect(k); n == 0 {
				t.Fatalf("reported %t: connection %d is not served", reported, i)
			}
			s.say(k, setup)
			if err := s.answer(k, ModeRTSP, setUpAt(6970+2*i)); err != nil {
				t.Errorf("reported %t: connection %d: %v", reported, i, err)
			}
			if reported {
				s.path.Drop(k.Protocol, flowOf(k))
				s.ended(k.Protocol, flowOf(k))
			}
		}
		if want := map[bool]int{true: 0, false: 1}[reported]; len(s.signalling) != want {
			t.Errorf("reported %t: %d parsers, want %d", reported, len(s.signalling), want)
		}
		s.purge(48 * time.Hour)
		s.empty()
	}
}

// TestSessionRestart goes on with what a dispatcher before this one has decided.
func TestSessionRestart(t *testing.T) {
	s := newSessionStand(t)
	k, d := tcpKey(stranger, 40000, 554), udpKey(somebody, 1000, 53)
	n, m := s.connect(k), s.say(d, "x")
	s.begin(sessionConfig(t))
	s.active(0, 0)
	if got := s.say(k, "the end of something\r\n\r\n"+setup); got != n {
		t.Errorf("signalling to node %d, before %d", got, n)
	}
	if got := s.signalling[k].parser.Stats(); got.Malformed > 0 || got.Resyncs != 1 {
		t.Errorf("%+v: want a search for the next message, and nothing malformed", got)
	}
	if err := s.answer(k, ModeRTSP, setUpAt(6970)); err != nil {
		t.Error(err)
	}
	if a := s.path.announced[media(stranger, 50000, 6970)]; a.Node != n {
		t.Errorf("announced for node %d, want %d", a.Node, n)
	}
	s.refresh(time.Now(), []forward.Known{
		{Flow: flowOf(d), Protocol: d.Protocol, Node: m},
		{Flow: flowOf(udpKey(somebody, 1001, 53)), Protocol: d.Protocol, Node: m},                     // gone since
		{Flow: flowOf(tcpKey(somebody, 1002, 443)), Protocol: unix.IPPROTO_TCP, Node: m},              // no session's
		{Flow: flowOf(udpKey(somebody, 1003, 30000)), Protocol: d.Protocol, Node: m, Secondary: true}, // of a session that is not known
	})
	if total := s.d.backend("b1").active.Load() + s.d.backend("b2").active.Load(); total != 2 {
		t.Errorf("%d sessions, want 2", total)
	}
	if got := s.say(udpKey(somebody, 1004, 53), "x"); got != m {
		t.Errorf("the client's next flow to node %d, before %d", got, m)
	}
}

// TestSessionRestartAnswer hears the server first.
func TestSessionRestartAnswer(t *testing.T) {
	s := newSessionStand(t)
	k := tcpKey(stranger, 40000, 21)
	n := s.connect(k)
	s.begin(sessionConfig(t))
	if err := s.answer(k, ModeFTP, passive(30000)); err != nil {
		t.Error(err)
	}
	if b := s.d.host(n); b.active.Load() != 1 {
		t.Error("the session was not taken up")
	}
}

// TestSessionRefused leaves nothing of a flow that is not served.
func TestSessionRefused(t *testing.T) {
	for _, tt := range []struct {
		name         string
		spoil, mend  func(s *sessionStand)
		servedBefore int
	}{
		{"no server", func(s *sessionStand) {
			for _, b := range s.d.live.Load().hosts {
				b.link = nil
			}
		}, func(s *sessionStand) {
			for _, b := range s.d.live.Load().hosts {
				b.link = new(wire.Link)
			}
		}, 0},
		{"the path", func(s *sessionStand) { s.path.broken = gate.ErrNoFlow }, func(s *sessionStand) { s.path.broken = nil }, 0},
		{"the table", func(s *sessionStand) {
			var err error
			if s.table, err = session.New(time.Now(), session.Config{MaxFlows: 1}); err != nil {
				s.t.Fatal(err)
			}
			s.connect(tcpKey(somebody, 1, 554))
		}, func(s *sessionStand) {
			k := tcpKey(somebody, 1, 554)
			s.ended(k.Protocol, flowOf(k))
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSessionStand(t)
			tt.spoil(s)
			for _, k := range []session.Key{tcpKey(stranger, 40000, 554), udpKey(stranger, 40000, 53)} {
				if n := s.connect(k); n != 0 {
					t.Errorf("%v: sent to node %d", k, n)
				}
				if s.path.flows[k] != nil {
					t.Errorf("%v: the path waits for a decision that does not come", k)
				}
			}
			if total := s.d.backend("b1").active.Load() + s.d.backend("b2").active.Load(); int(total) != tt.servedBefore {
				t.Errorf("%d sessions, want %d", total, tt.servedBefore)
			}
			tt.mend(s)
			if n := s.connect(tcpKey(stranger, 40000, 554)); n == 0 {
				t.Error("not served afterwards")
			}
		})
	}
}

// TestSessionAbandon ends the sessions of one server, and no other's.
func TestSessionAbandon(t *testing.T) {
	s := newSessionStand(t)
	at := map[gate.Node][]session.Key{}
	for port := range uint16(10) {
		k := tcpKey(stranger, 1000+port, 554)
		n := s.connect(k)
		s.say(k, setup)
		at[n] = append(at[n], k)
	}
	s.active(5, 5)
	b1, b2 := s.d.backend("b1"), s.d.backend("b2")
	s.abandon(b1.node)
	s.active(0, 5)
	if len(s.signalling) != 5 || len(s.pairs) != 5 {
		t.Errorf("%d parsers and %d pairs, want 5", len(s.signalling), len(s.pairs))
	}
	for _, k := range at[b1.node] {
		if s.path.flows[k] != nil {
			t.Errorf("%v still goes to a server that is gone", k)
		}
		// A packet that was on its way when that happened.
		s.decide(packet{Diverted: forward.Diverted{Reason: forward.Inspected, Flow: flowOf(k), Protocol: k.Protocol, Node: b1.node, Payload: []byte("x")}})
	}
	s.active(0, 5)
	b1.link = nil
	for _, k := range at[b1.node] {
		if n := s.connect(k); n != b2.node {
			t.Errorf("%v: to node %d", k, n)
		}
	}
	s.abandon(b2.node)
	s.empty()
}

// TestSessionConflict has two servers promise the same ports to one client.
func TestSessionConflict(t *testing.T) {
	s := newSessionStand(t)
	first, second := tcpKey(stranger, 1000, 554), tcpKey(stranger, 1001, 554)
	n := s.connect(first)
	if m := s.connect(second); m == n {
		t.Fatal("both on one server")
	}
	s.say(first, setup)
	s.say(second, setup)
	if err := s.answer(first, ModeRTSP, setUpAt(6970)); err != nil {
		t.Fatal(err)
	}
	if err := s.answer(second, ModeRTSP, setUpAt(6970)); !errors.Is(err, session.ErrConflict) {
		t.Errorf("error %v, want a conflict", err)
	}
	if got := s.packet(media(stranger, 50000, 6970), 0, 0, "x"); got != n {
		t.Errorf("media to node %d, promised to %d first", got, n)
	}
}

// TestSessionTakenOver gives ports that nobody has used for long to another server's session.
func TestSessionTakenOver(t *testing.T) {
	s := newSessionStand(t)
	first, second := tcpKey(stranger, 1000, 554), tcpKey(stranger, 1001, 554)
	s.connect(first)
	m := s.connect(second)
	s.say(first, setup)
	if err := s.answer(first, ModeRTSP, setUpAt(6970)); err != nil {
		t.Fatal(err)
	}
	k := media(stranger, 50000, 6970)
	s.packet(k, 0, 0, "x")
	// Its control connection lives, its media do not.
	id, _ := s.table.Lookup(time.Now(), second)
	later := time.Now().Add(10 * time.Minute)
	actions, err := s.table.Announce(later, id.Session, []session.Announcement{{Client: k.Client, Server: k.Server, Protocol: k.Protocol, Media: "rtp"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.perform(later, actions); err != nil {
		t.Error(err)
	}
	if got := s.packet(k, 0, 0, "x"); got != m {
		t.Errorf("media to node %d, want %d", got, m)
	}
}

// TestSessionUnannounced says so when the path has no room, and tries again.
func TestSessionUnannounced(t *testing.T) {
	s := newSessionStand(t)
	k := tcpKey(stranger, 1000, 554)
	s.connect(k)
	s.say(k, setup)
	s.path.full = forward.ErrFull
	if err := s.answer(k, ModeRTSP, setUpAt(6970)); !errors.Is(err, forward.ErrFull) {
		t.Fatalf("error %v, and the reply goes to the client", err)
	}
	s.path.full = nil
	k = tcpKey(stranger, 1001, 554) // its server is the other one: what failed must not be in the way
	s.connect(k)
	s.say(k, setup)
	if err := s.answer(k, ModeRTSP, setUpAt(6970)); err != nil {
		t.Error(err)
	}
	if len(s.path.announced) != 2 {
		t.Errorf("announced %v", s.path.announced)
	}
}

// TestSessionOccupied announces what is a service.
func TestSessionOccupied(t *testing.T) {
	s := newSessionStand(t)
	k := tcpKey(stranger, 1000, 21)
	s.connect(k)
	for _, port := range []int{21, 443, 5060, 554} {
		s.say(k, "PASV\r\n")
		if err := s.answer(k, ModeFTP, passive(port)); !errors.Is(err, errOccupied) {
			t.Errorf("port %d: %v", port, err)
		}
	}
	s.say(k, "PASV\r\n")
	if err := s.answer(k, ModeFTP, passive(53)); err != nil { // a service of UDP alone
		t.Error(err)
	}
	if len(s.path.announced) != 1 {
		t.Errorf("announced %v", s.path.announced)
	}
}

// TestInstallRefuses takes no report about what is no signalling.
func TestInstallRefuses(t *testing.T) {
	s := newSessionStand(t)
	for _, k := range []session.Key{tcpKey(stranger, 1, 554), tcpKey(stranger, 1, 443), tcpKey(stranger, 1, 9999), udpKey(stranger, 1, 53), udpKey(stranger, 1, 554)} {
		if err := s.install(context.Background(), gateway.Said{Flow: k}); err == nil {
			t.Errorf("%v: taken", k)
		}
	}
	s.empty()
}

// TestSessionsReload follows services that come and go.
func TestSessionsReload(t *testing.T) {
	s := newSessionStand(t)
	k, stays := udpKey(stranger, 1, 53), tcpKey(stranger, 2, 554)
	n := s.say(k, "x")
	s.connect(stays)
	old := s.d.live.Load()
	cfg := sessionConfig(t)
	cfg.Peers = s.d.cfg.Peers
	cfg.Services = append(cfg.Services[:3], cfg.Services[5])
	cfg.Services[1] = ServiceConfig{Name: "new", Mode: ModeUDP, Addresses: []netip.AddrPort{vip(55)}, Default: "both"}
	next, err := s.d.compile(valid(t, cfg), old)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.handle(next, old); err != nil {
		t.Fatal(err)
	}
	s.d.live.Store(next)
	if got := s.say(k, "x"); got != n {
		t.Errorf("a known flow goes to node %d, before %d", got, n)
	}
	if got := s.say(udpKey(stranger, 3, 53), "x"); got != 0 {
		t.Errorf("a service that has left sends to node %d", got)
	}
	if got := s.say(udpKey(stranger, 3, 55), "x"); got == 0 {
		t.Error("a new service serves nobody")
	}
	// A packet that waited for a decision while its service left.
	late := udpKey(stranger, 1, 54)
	s.path.flows[late] = &memoryFlow{undecided: true}
	s.decide(packet{Diverted: forward.Diverted{Reason: forward.Undecided, Flow: flowOf(late), Protocol: late.Protocol}})
	if s.path.flows[late] != nil {
		t.Error("it still waits")
	}
	if err := s.answer(udpKey(stranger, 9, 5060), ModeSIP, "SIP/2.0 200 OK\r\nFrom: <sip:a@a>;tag=a\r\nTo: <sip:b@b>;tag=b\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\nVia: SIP/2.0/UDP a\r\nContent-Length: 0\r\n\r\n"); err == nil {
		t.Error("a report about a service that has left was taken")
	}
}

// TestReloadToSessions turns a service of connections into one of sessions at the same address, and back.
func TestReloadToSessions(t *testing.T) {
	s := newSessionStand(t)
	d, at := s.d, vip(443)
	path := &seenTable{refuses: make(map[endpoint]forward.Admission)}
	path.services = map[netip.AddrPort]bool{at: true}
	d.path = path
	old := d.live.Load()
	cfg := sessionConfig(t)
	cfg.Services[5].Mode = ModeRTSP
	next, err := d.compile(valid(t, cfg), old)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.announceAll(next, old); err != nil {
		t.Fatal(err)
	}
	d.withdraw(next, old)
	// The path has one service for both: RemoveService would end the diversion as well.
	if !path.has(at) || !s.path.handled[endpoint{unix.IPPROTO_TCP, at}].Divert {
		t.Errorf("the path has the service: %t, and asks: %v", path.has(at), s.path.handled)
	}
	if err := d.announceAll(old, next); err != nil {
		t.Fatal(err)
	}
	d.withdraw(old, next)
	if _, ok := s.path.handled[endpoint{unix.IPPROTO_TCP, at}]; ok || !path.has(at) {
		t.Errorf("the path has the service: %t, and asks: %v", path.has(at), s.path.handled)
	}
}

// TestSessionEnded counts sessions and not connections, whatever the configuration has become meanwhile.
func TestSessionEnded(t *testing.T) {
	s := newSessionStand(t)
	d := s.d
	stays, leaves := tcpKey(stranger, 1, 554), tcpKey(somebody, 2, 21)
	path := &routedTable{node: s.connect(stays)}
	d.path = path
	if n := s.connect(leaves); n == path.node {
		t.Fatal("both on one server")
	}
	b := d.host(path.node)
	b.active.Add(1) // a connection that was handed off
	d.flowEnded(b, &wire.Ended{Flow: flowOf(stays)})
	if n := b.active.Load(); n != 1 {
		t.Errorf("%d of a handed-off connection and an ended session are left, want 1", n)
	}
	next := *d.live.Load()
	next.sessions = nil
	d.live.Store(&next)
	b = d.host(s.path.flows[leaves].node)
	b.active.Add(1)
	path.node = b.node
	d.flowEnded(b, &wire.Ended{Flow: flowOf(leaves)})
	if n := b.active.Load(); n != 1 {
		t.Errorf("%d are left after the end of a session of no service, want 1", n)
	}
	d.flowEnded(b, &wire.Ended{Flow: flowOf(tcpKey(stranger, 3, 443))})
	if n := b.active.Load(); n != 0 {
		t.Errorf("%d are left after the end of the connection, want none", n)
	}
}

// routedTable is a table in which every flow is one node's.
type routedTable struct {
	table
	node gate.Node
}

func (r *routedTable) Route(tcprepair.Flow) (gate.RouteInfo, error) {
	return gate.RouteInfo{Node: r.node, Epoch: 2}, nil
}
