// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// sessions serves the modes whose flows belong together (SARA 3-11, 17): the first packet of a flow that nobody knows comes here, and goes on to
// the server of its session; later ones never come again, but those of signalling, which announces further flows.
//
//	first packet ► session of that flow, name or client? ─ yes ► its server
//	                        │ no
//	                        └► pool's balancing ► new session
//	signalling ► parser ► halves ─┐
//	gateway ─────────► halves ────┴► pair ► announcements ► forwarder, before the packet that announces goes on
//
// Its methods may be called by any goroutine.
type sessions struct {
	d    *Dispatcher
	path sessionPath
	// gateways serves those who see what servers say.
	gateways *gateway.Server

	mu    sync.Mutex
	table *session.Table
	// signalling are the clients' halves, by flow; pairs are those of sessions.
	signalling map[session.Key]*signalling
	pairs      map[session.ID]*dialogue
	actions    []session.Action // scratch space
	flows      []session.Flow   // scratch space

	// departures are the sessions that may be moving to another server, and held counts their packets that wait; returning are those whose
	// packets still come by user space afterwards. arrived are when sessions have moved.
	departures, returning map[session.ID]*departure
	held                  int
	arrived               map[session.ID]time.Time
}

// sessionPath is what the packet path does for sessions: a forward.Forwarder, by protocol.
type sessionPath interface {
	Announce(...forward.Announcement) error
	Withdraw(...forward.Announcement) error
	// Assign, Locate and Forget are Flows' Assign, Route and Forget for the protocol.
	Assign(protocol uint8, f tcprepair.Flow, owner gate.Node, inspect bool) (gate.RouteInfo, error)
	Locate(protocol uint8, f tcprepair.Flow) (gate.RouteInfo, error)
	Drop(protocol uint8, f tcprepair.Flow) error
	Send(p packet, to gate.Node) error
	Handle(protocol uint8, at netip.AddrPort, h forward.Handling) error
	Unhandle(protocol uint8, at netip.AddrPort) error
	Divert(context.Context, func(packet)) error
	Watch(context.Context, func(forward.Event)) error
	Scan(at forward.Cursor, into []forward.Known) (n int, next forward.Cursor, err error)
	// Switch and Detour are Flows' Commit and Inspect for the protocol.
	Switch(protocol uint8, f tcprepair.Flow, from uint32, to gate.Node) (gate.RouteInfo, error)
	Detour(protocol uint8, f tcprepair.Flow, on bool) error
	// Idle reports whether no packet is waiting on its way through user space.
	Idle() bool
}

// packet is a client's packet that comes by user space.
type packet struct {
	forward.Diverted
	// sequence and flags are those of a TCP segment.
	sequence uint32
	flags    uint8
}

// sessionService is a service whose flows belong to sessions.
type sessionService struct {
	cfg  ServiceConfig
	pool *pool
}

// linked reports whether the service's connections can move.
func (v *sessionService) linked() bool { return v.pool.delivery == wire.DeliverLinked }

// endpoint is a place that one service has.
type endpoint struct {
	protocol uint8
	at       netip.AddrPort
}

func newSessions(d *Dispatcher, path sessionPath) (*sessions, error) {
	table, err := session.New(time.Now(), d.cfg.Sessions.table())
	if err != nil {
		return nil, fmt.Errorf("sessions: %w", err)
	}
	s := &sessions{
		d: d, path: path, table: table, signalling: make(map[session.Key]*signalling), pairs: make(map[session.ID]*dialogue),
		departures: make(map[session.ID]*departure), returning: make(map[session.ID]*departure), arrived: make(map[session.ID]time.Time),
	}
	s.gateways, err = gateway.NewServer(gateway.ServerConfig{Gateways: d.cfg.Gateways, Install: s.install, Logger: d.log})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close gives the table's memory back. Nobody finds a session from then on.
func (s *sessions) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.table.Free()
}

// handle has the path ask for the services of a plan, and no longer for those of another.
func (s *sessions) handle(next, old *plan) error {
	if old != nil {
		for e := range old.sessions {
			if next.sessions[e] == nil {
				if err := s.path.Unhandle(e.protocol, e.at); err != nil {
					return err
				}
			}
		}
	}
	for e, v := range next.sessions {
		h := forward.Handling{Divert: true, Inspect: v.cfg.Mode.signals()}
		if err := s.path.Handle(e.protocol, e.at, h); err != nil {
			return fmt.Errorf("service %s: %w", v.cfg.Name, err)
		}
	}
	return nil
}

const (
	// purgeTime and purgeFlows bound the work of one look for what nobody uses any more.
	purgeTime  = 100 * time.Millisecond
	purgeFlows = 256
	// refreshTime is how often the kernel's table is read for when flows were last used, refreshFlows how many at a time, so that a million are
	// read in less than the shortest timeout; packets wait for refreshBatch of them at most.
	refreshTime  = time.Second
	refreshFlows = 16384
	refreshBatch = 512
)

// run works until ctx ends.
func (s *sessions) run(ctx context.Context) error {
	s.d.roster.spawn(ctx, func(ctx context.Context) error { return s.path.Watch(ctx, s.began) })
	s.d.roster.spawn(ctx, s.tidy)
	return s.path.Divert(ctx, s.decide)
}

// tidy keeps the table.
func (s *sessions) tidy(ctx context.Context) error {
	known := make([]forward.Known, refreshFlows)
	var at forward.Cursor
	next := time.Now()
	for ctx.Err() == nil {
		wait(ctx, purgeTime)
		now := time.Now()
		s.mu.Lock()
		s.warn(s.perform(now, s.table.Purge(now, purgeFlows, s.actions[:0])))
		s.lapse(now)
		s.mu.Unlock()
		if now.Before(next) {
			continue
		}
		n, cursor, err := s.path.Scan(at, known)
		if err != nil {
			s.d.log.Warn("cannot see which flows are used", "error", err)
			n = 0
		}
		if at = cursor; at == 0 {
			next = now.Add(refreshTime)
		}
		for batch := range slices.Chunk(known[:n], refreshBatch) {
			s.refresh(now, batch)
		}
	}
	return nil
}

// refresh takes in what the path knows of flows.
func (s *sessions) refresh(now time.Time, known []forward.Known) {
	live := s.d.live.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range known {
		k := keyOf(f.Protocol, f.Flow)
		if f.Closing && f.Secondary && k.Protocol == unix.IPPROTO_TCP {
			// A transfer that is over. Nobody reports its end, and a client may begin many in a minute; the path forgets it by itself.
			s.forget(now, k)
			continue
		}
		actions, ok := s.table.Seen(now.Add(-f.Idle), k, s.actions[:0])
		s.warn(s.perform(now, actions))
		if ok || f.Node == 0 || f.Closing || f.Secondary {
			continue
		}
		if v := live.sessions[endpoint{f.Protocol, f.Flow.Local}]; v != nil {
			// Before a limit it is no session, and is asked for again with the next round.
			_ = s.adopt(now, k)
		}
	}
}

// adopt takes up a flow that the path has the owner of and the table does not know: it began with a dispatcher before this one.
func (s *sessions) adopt(now time.Time, k session.Key) error {
	r, err := s.path.Locate(k.Protocol, flowOf(k))
	if err != nil {
		return err
	}
	if r.Node == 0 {
		return gate.ErrNoFlow
	}
	return s.open(now, k, r.Node)
}

func keyOf(protocol uint8, f tcprepair.Flow) session.Key {
	return session.Key{Client: f.Remote, Server: f.Local, Protocol: protocol}
}

func flowOf(k session.Key) tcprepair.Flow { return tcprepair.NewFlow(k.Server, k.Client) }

// began takes in the first packet of an announced flow.
func (s *sessions) began(e forward.Event) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := keyOf(e.Protocol, e.Flow)
	f, actions, ok := s.table.Touch(now, k, s.actions[:0])
	s.warn(s.perform(now, actions))
	if ok && gate.Node(f.Server) != e.Node {
		// The session has moved in between.
		_, err := s.turn(session.Action{Key: k, Server: f.Server})
		s.warn(err)
	}
}

// ended takes in that a connection is over, and reports whether it was of a session.
func (s *sessions) ended(protocol uint8, f tcprepair.Flow) bool {
	now, k := time.Now(), keyOf(protocol, f)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hangUp(now, k)
	actions, known := s.table.End(k, s.actions[:0])
	s.warn(s.perform(now, actions))
	return known
}

// forget ends a flow here, and leaves to the path what that has of it.
func (s *sessions) forget(now time.Time, k session.Key) {
	s.hangUp(now, k)
	actions, _ := s.table.End(k, s.actions[:0])
	s.warn(s.perform(now, slices.DeleteFunc(actions, func(a session.Action) bool { return a.Kind == session.Remove && a.Key == k })))
}

// abandon ends the sessions of a server that is gone: the next packets of their clients find another, or are answered with RST.
func (s *sessions) abandon(n gate.Node) {
	const some = 1024
	var found []session.Session
	for at := session.Cursor(0); ; {
		s.mu.Lock()
		found, at = s.table.Scan(at, some, found[:0])
		now := time.Now()
		for _, v := range found {
			if gate.Node(v.Server) != n {
				continue
			}
			actions, err := s.table.Close(v.ID, s.actions[:0])
			if err == nil {
				s.warn(s.perform(now, actions))
			}
		}
		s.mu.Unlock()
		if at == 0 {
			return
		}
	}
}
