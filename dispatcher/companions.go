// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// This file takes a session's media along when its signalling connection moves to another server (M-TCP 8). Agents move the connection, and ask
// the dispatcher, its entry, for a lease before they pause the server's application, and for the commit when the target's has everything. In
// between, the datagrams of clients have no server that could take them:
//
//	lease ────► the session's other flows come by user space, and wait here
//	commit ───► the connection is the target's; the table and the other flows follow, then what has waited
//	abort ────► what has waited goes to the server that the session still has
//
// So datagrams come late, and in order, and to no server without the session.

const (
	// maxHold bounds how long a session's datagrams wait, whatever becomes of the move.
	maxHold = 2 * time.Second
	// maxHeldSession and maxHeld bound how many wait, of one session and in all. What comes beyond is dropped and counted.
	maxHeldSession = 512
	maxHeld        = 8192
)

// departure is a session whose signalling connection may be leaving its server.
type departure struct {
	session session.ID
	signal  session.Key // the connection
	until   time.Time
	held    []packet // of the other flows, in the order in which they came
}

// errNotAlone means that a session has connections that would stay behind.
var errNotAlone = errors.New("the session has another connection, which would stay behind")

// mayLeave says why a connection must not leave its server: a session moves as a whole, and only one connection of it at a time can.
// What is no session's may.
func (s *sessions) mayLeave(now time.Time, f tcprepair.Flow) error {
	k := keyOf(unix.IPPROTO_TCP, f)
	if !s.serves(k) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.signalled(now, k)
	if !ok || s.alone(now, id, k) {
		return nil
	}
	return wire.Refusef(s.d.cfg.Host, wire.CodeNotNow, "%v", errNotAlone)
}

// serves reports whether a flow is of a service with sessions; it asks nobody to wait.
func (s *sessions) serves(k session.Key) bool {
	return s.d.live.Load().sessions[endpoint{k.Protocol, k.Server}] != nil
}

// signalled returns the session whose signalling a connection is. One that began with a dispatcher before this one is taken up.
func (s *sessions) signalled(now time.Time, k session.Key) (session.ID, bool) {
	if !s.serves(k) {
		return 0, false
	}
	f, ok := s.table.Lookup(now, k)
	if !ok && s.adopt(now, k) == nil {
		f, ok = s.table.Lookup(now, k)
	}
	return f.Session, ok && f.Identity == session.Signalling
}

// alone reports whether a session has no connection but that one. Those that are announced are none yet.
func (s *sessions) alone(now time.Time, id session.ID, k session.Key) bool {
	s.flows = s.table.Flows(now, id, s.flows[:0])
	for _, f := range s.flows {
		if f.Key.Protocol == unix.IPPROTO_TCP && f.Key != k && f.Identity != session.Announced {
			return false
		}
	}
	return true
}

// leaving takes in that a connection may be moved until then: a lease has been granted.
func (s *sessions) leaving(now time.Time, f tcprepair.Flow, ttl time.Duration) {
	k := keyOf(unix.IPPROTO_TCP, f)
	if !s.serves(k) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.signalled(now, k)
	if !ok || s.departures[id] != nil {
		return
	}
	v := &departure{session: id, signal: k, until: now.Add(min(ttl, maxHold))}
	s.departures[id] = v
	delete(s.returning, id)
	s.warn(s.divert(now, v, true))
}

// settled takes in how a connection's move has ended, or may have: its owner says.
func (s *sessions) settled(now time.Time, f tcprepair.Flow) {
	k := keyOf(unix.IPPROTO_TCP, f)
	if !s.serves(k) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, ok := s.signalled(now, k); ok {
		s.conclude(now, id, k)
	}
}

// lapse ends the wait of those whose moves have not ended in time.
func (s *sessions) lapse(now time.Time) {
	for id, v := range s.departures {
		if now.After(v.until) {
			s.conclude(now, id, v.signal)
		}
	}
	for _, v := range s.returning {
		s.shorten(now, v)
	}
}

// conclude has a session follow its signalling connection, if that has moved, and lets its datagrams go.
func (s *sessions) conclude(now time.Time, id session.ID, k session.Key) {
	r, err := s.path.Locate(k.Protocol, flowOf(k))
	if is, ok := s.table.Session(id); err == nil && ok && r.Node != 0 && gate.Node(is.Server) != r.Node {
		s.warn(s.relocate(now, id, k, r.Node))
	}
	if v := s.departures[id]; v != nil {
		s.release(now, v)
	}
}

// relocate gives a session to the server that its signalling connection has come to.
func (s *sessions) relocate(now time.Time, id session.ID, k session.Key, to gate.Node) error {
	actions, err := s.table.Move(id, session.Server(to), nil)
	if err != nil {
		return err
	}
	var failed error
	for _, a := range actions {
		if a.Key != k {
			failed = errors.Join(failed, s.redirect(a))
		}
	}
	s.arrived[id] = now
	s.d.count.followed.Inc()
	if failed != nil {
		return fmt.Errorf("flows of %v do not follow it to %s: %w", id, s.d.HostOf(to), failed)
	}
	return nil
}

// redirect switches the path of one flow of a session that has moved. Whether its datagrams wait stays as it is.
func (s *sessions) redirect(a session.Action) error {
	// The flow first: the path forgets one whose announcement names another node, and with it that its datagrams wait.
	known, err := s.turn(a)
	if err != nil || known && a.Identity != session.Announced || a.Identity == session.Signalling {
		return err
	}
	return s.path.Announce(s.announcement(a))
}

// turnTries is how often turn tries: the path changes a flow by itself when its client uses the port again.
const turnTries = 3

// turn gives a flow of datagrams that the path knows to its session's server; known tells whether it does.
func (s *sessions) turn(a session.Action) (known bool, err error) {
	if !waits(a.Key) || a.Key.Client.Port() == 0 || a.Key.Server.Port() == 0 {
		return false, nil
	}
	f, to := flowOf(a.Key), gate.Node(a.Server)
	for range turnTries {
		var r gate.RouteInfo
		r, err = s.path.Locate(a.Key.Protocol, f)
		if errors.Is(err, gate.ErrNoFlow) {
			return false, nil
		}
		if err != nil || r.Node == to || r.Node == 0 { // 0: undecided, and the table will be asked
			return true, err
		}
		if _, err = s.path.Switch(a.Key.Protocol, f, r.Epoch, to); err == nil || !errors.Is(err, gate.ErrEpoch) && !errors.Is(err, gate.ErrNoFlow) {
			return true, err
		}
	}
	return true, err
}

// waits reports whether a flow's packets may be held here: datagrams. A connection repeats what it has lost.
func waits(k session.Key) bool { return k.Protocol == unix.IPPROTO_UDP }

// divert has the datagrams of a session's other flows come by user space, or no longer. Signalling always does.
func (s *sessions) divert(now time.Time, v *departure, on bool) error {
	var failed error
	s.flows = s.table.Flows(now, v.session, s.flows[:0])
	for _, f := range s.flows {
		if f.Identity == session.Signalling || !waits(f.Key) {
			continue
		}
		if f.Identity == session.Announced {
			a := session.Action{Key: f.Key, Session: f.Session, Server: f.Server, Identity: f.Identity}
			failed = errors.Join(failed, s.path.Announce(s.announcement(a)))
		}
		// An announced flow may have begun an instant ago.
		if f.Key.Client.Port() == 0 || f.Key.Server.Port() == 0 {
			continue
		}
		if err := s.path.Detour(f.Key.Protocol, flowOf(f.Key), on); err != nil && !errors.Is(err, gate.ErrNoFlow) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// keep holds a packet of a session that may be leaving, and reports whether it has dealt with it.
func (s *sessions) keep(now time.Time, k session.Key, p *packet) bool {
	if len(s.departures) == 0 || p.Reason != forward.Inspected {
		return false
	}
	f, ok := s.table.Lookup(now, k)
	v := s.departures[f.Session]
	if !ok || v == nil || !waits(k) {
		return false
	}
	if len(v.held) >= maxHeldSession || s.held >= maxHeld {
		s.d.count.unheld.Inc()
		return true
	}
	v.held = append(v.held, packet{Diverted: p.Clone(), sequence: p.sequence, flags: p.flags})
	s.held++
	s.d.count.held.Inc()
	return true
}

// release sends what has waited to the server that the session has.
func (s *sessions) release(now time.Time, v *departure) {
	delete(s.departures, v.session)
	s.returning[v.session], v.until = v, now.Add(maxReturn)
	s.held -= len(v.held)
	for i := range v.held {
		p := &v.held[i]
		s.pass(now, keyOf(p.Protocol, p.Flow), p)
	}
	v.held = nil
	s.shorten(now, v)
}

// maxReturn bounds how long datagrams come by user space when they need not wait any more.
const maxReturn = time.Second

// shorten lets a session's datagrams take the short way again. Those that are still in the tap would be overtaken: it waits until there are none,
// within bounds.
func (s *sessions) shorten(now time.Time, v *departure) {
	if len(v.held) > 0 || !s.path.Idle() && now.Before(v.until) {
		return
	}
	delete(s.returning, v.session)
	s.warn(s.divert(now, v, false))
}

// returns follows a datagram that has been sent on: it may have been the last in the tap.
func (s *sessions) returns(now time.Time, k session.Key, p *packet) {
	if len(s.returning) == 0 || p.Reason != forward.Inspected || !waits(k) {
		return
	}
	if f, ok := s.table.Lookup(now, k); ok && s.returning[f.Session] != nil {
		s.shorten(now, s.returning[f.Session])
	}
}

// straighten lets the datagrams of media take the short way again, where a dispatcher before this one was killed while they waited.
func (s *sessions) straighten(k session.Key, p *packet) {
	if p.Reason != forward.Inspected || !waits(k) {
		return
	}
	if err := s.path.Detour(k.Protocol, p.Flow, false); err != nil && !errors.Is(err, gate.ErrNoFlow) {
		s.warn(err)
	}
}

// owner returns the node that an inspected packet goes to: since the kernel has looked, its session may have moved.
func (s *sessions) owner(now time.Time, k session.Key, p *packet) gate.Node {
	if k.Protocol == unix.IPPROTO_UDP && p.Reason == forward.Inspected && p.Node != 0 {
		if f, ok := s.table.Lookup(now, k); ok {
			return gate.Node(f.Server)
		}
	}
	return p.Node
}

// accompany has sessions follow what the dispatcher has answered to an agent that moves one of their connections.
func (d *Dispatcher) accompany(now time.Time, asked, answer wire.Message) {
	if d.sessions == nil {
		return
	}
	switch m := asked.(type) {
	case *wire.Lease:
		if _, ok := answer.(*wire.Leased); ok {
			d.sessions.leaving(now, m.Flow, m.TTL)
		}
	case *wire.Commit:
		d.sessions.settled(now, m.Flow)
	case *wire.Abort:
		d.sessions.settled(now, m.Flow)
	}
}
