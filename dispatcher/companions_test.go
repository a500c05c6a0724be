// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// linkedStand is a sessionStand whose servers are linked.
func linkedStand(t *testing.T) *sessionStand {
	t.Helper()
	s := &sessionStand{t: t, path: newMemoryPath(), next: make(map[session.Key]uint32)}
	s.begin(linkedConfig(t))
	return s
}

func linkedConfig(t *testing.T) Config {
	t.Helper()
	cfg := sessionConfig(t)
	cfg.Pools[0].Delivery = DeliveryLinked
	cfg.Services = slices.DeleteFunc(cfg.Services, func(v ServiceConfig) bool { return v.Mode == ModeUDP && v.Default == "both" })
	return cfg
}

// playing begins a session of RTSP whose RTP has begun, and whose RTCP has not.
func (s *sessionStand) playing(port uint16) (signal, rtp, rtcp session.Key, server gate.Node) {
	s.t.Helper()
	signal = tcpKey(stranger, port, 554)
	server = s.connect(signal)
	s.say(signal, setup)
	if err := s.answer(signal, ModeRTSP, setUpAt(6970)); err != nil {
		s.t.Fatal(err)
	}
	rtp, rtcp = media(stranger, 50000, 6970), media(stranger, 50001, 6971)
	if n := s.packet(rtp, 0, 0, "rtp"); n != server || n == 0 {
		s.t.Fatalf("media to node %d, signalling to %d", n, server)
	}
	return signal, rtp, rtcp, server
}

// other returns the node that a session is not at.
func (s *sessionStand) other(n gate.Node) gate.Node {
	if b := s.d.backend("b1").node; b != n {
		return b
	}
	return s.d.backend("b2").node
}

// commit moves the connection, as the entry's commit does.
func (s *sessionStand) commit(k session.Key, to gate.Node) {
	s.t.Helper()
	r, err := s.path.Locate(k.Protocol, flowOf(k))
	if err == nil {
		_, err = s.path.Switch(k.Protocol, flowOf(k), r.Epoch, to)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.d.flowMoved(r.Node, to)
}

// held checks how many packets wait.
func (s *sessionStand) waiting(want int) {
	s.t.Helper()
	if s.held != want {
		s.t.Errorf("%d packets wait, want %d", s.held, want)
	}
}

// TestSessionFollows moves a session while its client sends: what comes in between waits, and all goes to the new server, in order.
func TestSessionFollows(t *testing.T) {
	s := linkedStand(t)
	k, rtp, rtcp, from := s.playing(40000)
	to, now := s.other(from), time.Now()
	if err := s.mayLeave(now, flowOf(k)); err != nil {
		t.Fatal(err)
	}
	s.leaving(now, flowOf(k), 10*time.Second)
	s.leaving(now, flowOf(k), 10*time.Second) // asked twice
	for i := range 3 {
		s.packet(rtp, 0, 0, fmt.Sprint("rtp ", i))
		s.packet(rtcp, 0, 0, fmt.Sprint("rtcp ", i)) // announced, and begins now
	}
	s.waiting(6)
	if n := s.say(k, "OPTIONS * RTSP/1.0\r\nCSeq: 2\r\n\r\n"); n != from {
		t.Errorf("signalling to node %d before the commit: the source's host holds it", n)
	}
	s.commit(k, to)
	sent := len(s.path.log)
	s.settled(now, flowOf(k))
	s.waiting(0)
	var order []string
	for _, line := range s.path.log[sent:] {
		if key, ok := strings.CutPrefix(line, "send "); ok {
			order = append(order, key)
		}
		if line == "astray" {
			t.Error("what waited goes to the old server")
		}
	}
	a, b := rtp.String(), rtcp.String()
	if want := []string{a, b, a, b, a, b}; !slices.Equal(order, want) {
		t.Errorf("sent %v, want %v", order, want)
	}
	for _, m := range []session.Key{rtp, rtcp} {
		f := s.path.flows[m]
		if f.node != to || f.inspected {
			t.Errorf("%v: at node %d, by user space %t", m, f.node, f.inspected)
		}
	}
	if n := s.say(k, "OPTIONS * RTSP/1.0\r\nCSeq: 3\r\n\r\n"); n != to || !s.path.flows[k].inspected {
		t.Errorf("signalling to node %d, want %d, and that it is read on", n, to)
	}
	if to == s.d.backend("b2").node {
		s.active(0, 1)
	} else {
		s.active(1, 0)
	}
	// What is announced now, and a packet that the kernel had marked for the old server, too.
	s.say(k, strings.ReplaceAll(setup, "50000-50001", "50002-50003"))
	if err := s.answer(k, ModeRTSP, strings.ReplaceAll(setUpAt(6980), "50000-50001", "50002-50003")); err != nil {
		t.Fatal(err)
	}
	if n := s.packet(media(stranger, 50002, 6980), 0, 0, "rtp"); n != to {
		t.Errorf("further media to node %d, want %d", n, to)
	}
	late := packet{Diverted: forward.Diverted{Flow: flowOf(rtp), Protocol: rtp.Protocol, Node: from, Reason: forward.Inspected}}
	sent = len(s.path.log)
	s.decide(late)
	if slices.Contains(s.path.log[sent:], "astray") {
		t.Error("a packet that was under way to the old server goes there")
	}
	s.ended(k.Protocol, flowOf(k))
	s.purge(time.Hour)
	s.empty()
	if len(s.arrived) > 0 {
		t.Error("it is remembered that a session has moved that is over")
	}
}

// TestSessionOvertakes holds that no datagram overtakes those that are still in the tap, for a bounded time.
func TestSessionOvertakes(t *testing.T) {
	for _, forced := range []bool{false, true} {
		s := linkedStand(t)
		k, rtp, _, from := s.playing(40000)
		s.leaving(time.Now(), flowOf(k), time.Second)
		s.packet(rtp, 0, 0, "waits")
		s.path.busy = true
		s.commit(k, s.other(from))
		s.settled(time.Now(), flowOf(k))
		if n := s.packet(rtp, 0, 0, "in the tap"); n != s.other(from) || !s.path.flows[rtp].inspected {
			t.Errorf("to node %d, by user space %t: it may overtake others", n, s.path.flows[rtp].inspected)
		}
		s.waiting(0)
		if forced {
			s.mu.Lock()
			s.lapse(time.Now().Add(2 * maxReturn))
			s.mu.Unlock()
		} else {
			s.path.busy = false
			s.packet(rtp, 0, 0, "the last")
		}
		if s.path.flows[rtp].inspected || len(s.returning) > 0 {
			t.Errorf("forced %t: it comes by user space for ever", forced)
		}
	}
}

// TestSessionStays gives up a move: what has waited goes to the server that there was.
func TestSessionStays(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(s *sessionStand, k session.Key)
	}{
		{"aborted", func(s *sessionStand, k session.Key) { s.settled(time.Now(), flowOf(k)) }},
		{"nobody says anything", func(s *sessionStand, _ session.Key) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lapse(time.Now().Add(maxHold + time.Second))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := linkedStand(t)
			k, rtp, rtcp, from := s.playing(40000)
			s.leaving(time.Now(), flowOf(k), 10*time.Second)
			s.packet(rtp, 0, 0, "rtp")
			s.waiting(1)
			sent := len(s.path.log)
			tt.end(s, k)
			s.waiting(0)
			if !slices.Contains(s.path.log[sent:], "send "+rtp.String()) || slices.Contains(s.path.log[sent:], "astray") {
				t.Errorf("what has waited is not sent: %v", s.path.log[sent:])
			}
			for _, m := range []session.Key{rtp, rtcp} {
				if n := s.packet(m, 0, 0, "later"); n != from || s.path.flows[m].inspected {
					t.Errorf("%v: to node %d, want %d; by user space %t", m, n, from, s.path.flows[m].inspected)
				}
			}
		})
	}
}

// TestSessionMovedUnseen follows a connection whose lease nobody has seen, as after a restart, and one whose commit was seen by its lapse.
func TestSessionMovedUnseen(t *testing.T) {
	s := linkedStand(t)
	k, rtp, _, from := s.playing(40000)
	to := s.other(from)
	s.commit(k, to)
	s.settled(time.Now(), flowOf(k))
	if n := s.packet(rtp, 0, 0, "rtp"); n != to {
		t.Errorf("media to node %d, want %d", n, to)
	}
	s.leaving(time.Now(), flowOf(k), time.Second)
	s.packet(rtp, 0, 0, "rtp")
	s.commit(k, from)
	s.mu.Lock()
	s.lapse(time.Now().Add(time.Hour))
	s.mu.Unlock()
	if n := s.packet(rtp, 0, 0, "rtp"); n != from {
		t.Errorf("media to node %d after the way back, want %d", n, from)
	}
}

// TestSessionKilledWhileWaiting starts anew over a path that a dispatcher has left in the middle of a move.
func TestSessionKilledWhileWaiting(t *testing.T) {
	s := linkedStand(t)
	k, rtp, rtcp, from := s.playing(40000)
	s.leaving(time.Now(), flowOf(k), time.Second)
	s.packet(rtp, 0, 0, "lost with the process")
	s.begin(linkedConfig(t))
	for _, m := range []session.Key{rtp, rtcp} {
		if n := s.packet(m, 0, 0, "by user space"); n != from {
			t.Errorf("%v: to node %d, want %d", m, n, from)
		}
		if s.path.flows[m].inspected {
			t.Errorf("%v comes by user space for ever", m)
		}
	}
}

// TestSessionNotAlone refuses to take one connection out of a session that has two: FTP's, in a transfer.
func TestSessionNotAlone(t *testing.T) {
	s := linkedStand(t)
	k := tcpKey(stranger, 40000, 21)
	s.connect(k)
	s.say(k, "PASV\r\n")
	if err := s.answer(k, ModeFTP, passive(30000)); err != nil {
		t.Fatal(err)
	}
	if err := s.mayLeave(time.Now(), flowOf(k)); err != nil {
		t.Errorf("no transfer has begun, and %v", err)
	}
	data := tcpKey(stranger, 50000, 30000)
	s.packet(data, tcpSYN, 1, "")
	var refused *wire.RefusedError
	if err := s.mayLeave(time.Now(), flowOf(k)); !errors.As(err, &refused) || refused.Code != wire.CodeNotNow {
		t.Errorf("in a transfer: %v", err)
	}
	s.refresh(time.Now(), []forward.Known{{Flow: flowOf(data), Protocol: data.Protocol, Node: 1, Secondary: true, Closing: true}})
	if err := s.mayLeave(time.Now(), flowOf(k)); err != nil {
		t.Errorf("the transfer is over, and %v", err)
	}
	if err := s.mayLeave(time.Now(), flowOf(tcpKey(stranger, 1, 443))); err != nil {
		t.Errorf("what is no session's: %v", err)
	}
}

// TestSessionHoldBound drops what is beyond the bound, and counts it.
func TestSessionHoldBound(t *testing.T) {
	s := linkedStand(t)
	k, rtp, _, _ := s.playing(40000)
	s.leaving(time.Now(), flowOf(k), time.Second)
	for range maxHeldSession + 10 {
		s.packet(rtp, 0, 0, "rtp")
	}
	s.waiting(maxHeldSession)
	s.mu.Lock()
	actions, err := s.table.Close(s.signalledID(k), nil)
	s.warn(s.perform(time.Now(), actions))
	s.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	s.waiting(0)
	if len(s.departures) > 0 {
		t.Error("a session that is over still departs")
	}
}

func (s *sessionStand) signalledID(k session.Key) session.ID {
	id, _ := s.signalled(time.Now(), k)
	return id
}

// TestOwners holds that agents and the entry count a connection's epochs alike: its server begins with 1, the path with 2.
func TestOwners(t *testing.T) {
	d, _ := managed(t, func(cfg *Config) { *cfg = withLinked(t, cfg) })
	path := &owned{seenTable: d.path.(*seenTable), flows: map[session.Key]gate.RouteInfo{}}
	d.path = path
	o := owners{d}
	for _, tt := range []struct {
		port  uint16
		ahead uint32
	}{{554, 1}, {443, 0}} {
		k := tcpKey(stranger, 40000, tt.port)
		path.flows[k] = gate.RouteInfo{Node: 1, Epoch: 2}
		if r, err := o.Route(flowOf(k)); err != nil || r.Epoch != 2-tt.ahead {
			t.Errorf("port %d: epoch %d, %v", tt.port, r.Epoch, err)
		}
		if r, err := o.Commit(flowOf(k), 2-tt.ahead, 2); err != nil || r.Epoch != 3-tt.ahead || path.flows[k].Epoch != 3 {
			t.Errorf("port %d: committed to epoch %d, in the path %d, %v", tt.port, r.Epoch, path.flows[k].Epoch, err)
		}
		delete(path.flows, k)
		if r, err := o.Adopt(flowOf(k), 5, 1); err != nil || r.Epoch != 5 || path.flows[k].Epoch != 5+tt.ahead {
			t.Errorf("port %d: adopted at epoch %d, in the path %d, %v", tt.port, r.Epoch, path.flows[k].Epoch, err)
		}
	}
	if is, server := d.Serves(vip(554), "b1"); !is || !server {
		t.Errorf("linked sessions: entry %t, server %t", is, server)
	}
	if is, _ := d.Serves(vip(53), "b1"); is {
		t.Error("datagrams have no connection to move")
	}
}

// TestSheddingSessions holds that a session is one thing to move, with the weight of its flows, and stays for a while where it has come.
func TestSheddingSessions(t *testing.T) {
	s := linkedStand(t)
	k, _, _, from := s.playing(40000)
	s.connect(tcpKey(somebody, 40000, 21))
	var seen []travelling
	look := func() *travelling {
		seen = seen[:0]
		s.each(time.Now(), func(c travelling) { seen = append(seen, c) })
		i := slices.IndexFunc(seen, func(c travelling) bool { return c.signal == k })
		if i < 0 {
			t.Fatal("the session is not seen")
		}
		return &seen[i]
	}
	c := look()
	if len(seen) != 2 || c.at != from || c.weight != 3 || len(c.to) != 2 || !c.since.IsZero() {
		t.Errorf("%d sessions, %+v", len(seen), c)
	}
	before := c.identity()
	if before&shedBit != 0 || before != look().identity() {
		t.Errorf("number %x", before)
	}
	s.leaving(time.Now(), flowOf(k), time.Second)
	if c := look(); len(c.to) > 0 {
		t.Errorf("it is leaving, and may go to %v", c.to)
	}
	s.commit(k, s.other(from))
	s.settled(time.Now(), flowOf(k))
	if c := look(); c.since.IsZero() || c.at == from || c.identity() == before {
		t.Errorf("after the move %+v", c)
	}
}

// withLinked makes the sessions' pool linked.
func withLinked(t *testing.T, cfg *Config) Config {
	t.Helper()
	next := linkedConfig(t)
	next.Reports = cfg.Reports
	return next
}

// owned is a path in memory that has owners.
type owned struct {
	*seenTable
	flows map[session.Key]gate.RouteInfo
}

func (o *owned) Route(f tcprepair.Flow) (gate.RouteInfo, error) {
	r, ok := o.flows[keyOf(unix.IPPROTO_TCP, f)]
	if !ok {
		return r, gate.ErrNoFlow
	}
	return r, nil
}

func (o *owned) Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	r := gate.RouteInfo{Node: owner, Epoch: epoch}
	o.flows[keyOf(unix.IPPROTO_TCP, f)] = r
	return r, nil
}

func (o *owned) Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	k := keyOf(unix.IPPROTO_TCP, f)
	if o.flows[k].Epoch != from {
		return o.flows[k], gate.ErrEpoch
	}
	o.flows[k] = gate.RouteInfo{Node: owner, Epoch: from + 1}
	return o.flows[k], nil
}
