// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// shedTime is how often it is looked whether a server is too hot.
	shedTime = 250 * time.Millisecond
	// shedFlows is how many flows of the table are looked at in one go.
	shedFlows = 4096
)

// shedding moves live connections away from servers that have announced their failure (SARA 27), and from hot ones if the configuration says so
// (M-TCP 8): those of linked servers, which can move at any moment. Of a session it moves the signalling connection, which the session's media
// follow (companions.go).
type shedding struct {
	d       *Dispatcher
	m       *management
	shedder *load.Shedder

	// moving are the flows that may be ordered away, by their number, and arrived those that have moved, with when that was seen.
	moving  map[uint64]tcprepair.Flow
	arrived map[uint64]time.Time
	failed  chan uint64
}

func newShedding(d *Dispatcher, m *management) (*shedding, error) {
	s, err := load.NewShedder(d.cfg.Shedding.shedder())
	if err != nil {
		return nil, fmt.Errorf("shedding: %w", err)
	}
	return &shedding{d: d, m: m, shedder: s, moving: make(map[uint64]tcprepair.Flow), arrived: make(map[uint64]time.Time), failed: make(chan uint64, shedFlows)}, nil
}

// run works until ctx ends.
func (s *shedding) run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait(ctx, shedTime)
		s.learn()
		s.shed(time.Now())
	}
	return nil
}

// learn takes in which moves have failed.
func (s *shedding) learn() {
	for {
		select {
		case id := <-s.failed:
			s.shedder.Failed(id)
		default:
			return
		}
	}
}

// shed orders away what the policy says.
func (s *shedding) shed(now time.Time) {
	servers, look := s.servers()
	if look {
		if err := s.fill(now, servers); err != nil {
			s.d.log.Warn("cannot see what a hot or failing server has", "error", err)
			return
		}
	}
	for _, m := range s.shedder.Plan(now, servers) {
		s.order(m)
	}
	s.d.flush()
}

// servers are all backends. look means that one of them may have to give sessions away. The load is the measured one: package load knows itself what its moves
// will make of it, and the forecast of a load that falls because of them lies below what it comes to.
func (s *shedding) servers() (servers []load.Server, look bool) {
	low := s.shedder.Config().Low
	for _, b := range s.d.live.Load().backends {
		v := s.m.of(b.node)
		fails := s.fails(b)
		measured := v.measured
		if !v.known {
			measured = load.UnknownLoad
		}
		servers = append(servers, load.Server{
			Host: uint32(b.node), Load: measured, Fails: fails,
			Takes: v.state.TakesSessions() && b.up() && !b.draining.Load() && !s.drained(b),
		})
		look = look || !fails.IsZero() || s.d.cfg.Shedding.Enabled && measured > low
	}
	return servers, look
}

// fails is when a backend will fail, as it has announced; zero when it has not. One that is being drained announces that as well, and moves its
// connections away itself.
func (s *shedding) fails(b *backend) time.Time {
	if b.draining.Load() {
		return time.Time{}
	}
	return s.m.fails(b.node)
}

// drained reports whether an operator keeps connections away from a backend in any pool, or its check does.
func (s *shedding) drained(b *backend) bool {
	for _, p := range s.d.live.Load().pools {
		for _, m := range p.members {
			if m.host == b && (m.view(nil).Drained || m.condition.ill()) {
				return true
			}
		}
	}
	return false
}

// scanner is a packet path whose flows can be seen.
type scanner interface {
	Scan(at forward.Cursor, into []forward.Known) (n int, next forward.Cursor, err error)
}

// fill gives servers their connections.
func (s *shedding) fill(now time.Time, servers []load.Server) error {
	path, ok := s.d.path.(scanner)
	if !ok {
		return nil
	}
	byHost := make(map[uint32]*load.Server, len(servers))
	for i := range servers {
		byHost[servers[i].Host] = &servers[i]
	}
	clear(s.moving)
	defer func() {
		for id := range s.arrived {
			if _, ok := s.moving[id]; !ok {
				delete(s.arrived, id)
			}
		}
	}()
	known := make([]forward.Known, shedFlows)
	for at := forward.Cursor(0); ; {
		n, next, err := path.Scan(at, known)
		if err != nil {
			return err
		}
		for _, k := range known[:n] {
			server := byHost[uint32(k.Node)]
			if server == nil || k.Closing || s.ofSession(k) {
				continue
			}
			id := identity(k)
			s.moving[id] = k.Flow
			to := s.targets(k)
			server.Sessions = append(server.Sessions, load.Session{ID: id, Weight: 1, Fixed: len(to) == 0, To: to, Since: s.since(now, id, k)})
		}
		if at = next; at == 0 {
			break
		}
	}
	if s.d.sessions != nil {
		s.d.sessions.each(now, func(c travelling) {
			if server := byHost[uint32(c.at)]; server != nil {
				id := c.identity()
				s.moving[id] = flowOf(c.signal)
				server.Sessions = append(server.Sessions, load.Session{ID: id, Weight: c.weight, Fixed: len(c.to) == 0, To: c.to, Since: c.since})
			}
		})
	}
	return nil
}

// ofSession reports whether a flow counts as a part of its session.
func (s *shedding) ofSession(k forward.Known) bool {
	return s.d.sessions != nil && (k.Secondary || s.d.live.Load().sessions[endpoint{k.Protocol, k.Flow.Local}] != nil)
}

// identity is a flow's number: that of its ports and addresses, and of who had it, so that one that comes back is another.
func identity(k forward.Known) uint64 {
	raw, _ := k.Flow.Remote.MarshalBinary() // never fails
	local, _ := k.Flow.Local.MarshalBinary()
	return numberOf(append(append(raw, local...), k.Protocol, byte(k.Epoch), byte(k.Epoch>>8)))
}

// numberOf makes a number for load.Session of what tells one from another (FNV-1a).
func numberOf(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h &^ shedBit
}

// since is when a connection came to its server, as far as it matters: one that has moved already stays for a while.
func (s *shedding) since(now time.Time, id uint64, k forward.Known) time.Time {
	const accepted = 2 // the epoch of a connection that was handed off once
	if k.Epoch <= accepted {
		return time.Time{}
	}
	at, ok := s.arrived[id]
	if !ok {
		at = now
		s.arrived[id] = at
	}
	return at
}

// targets returns the hosts to which a connection's server can give it away; none when it cannot.
func (s *shedding) targets(k forward.Known) []uint32 {
	if k.Protocol != unix.IPPROTO_TCP || k.Fresh {
		return nil
	}
	v := s.d.live.Load().at[k.Flow.Local]
	if v == nil {
		return nil
	}
	for _, p := range v.routing.Load().pools {
		if p.delivery == wire.DeliverLinked && v.leadsTo(p) && slices.ContainsFunc(p.members, func(m *member) bool { return m.host.node == k.Node }) {
			return p.nodes
		}
	}
	return nil
}

// order has an agent move a connection.
func (s *shedding) order(m load.Move) {
	f, ok := s.moving[m.Session]
	from, to := s.d.host(gate.Node(m.From)), s.d.host(gate.Node(m.To))
	if !ok || from == nil || to == nil || !from.up() {
		s.shedder.Failed(m.Session)
		return
	}
	if s.fails(from).IsZero() {
		s.d.count.shed.Inc()
	} else {
		s.d.count.evacuated.Inc()
	}
	from.send(m.Session|shedBit, &wire.Relocate{Flow: f, To: to.name})
}

// shedBit marks the ids of Relocate; attempts' ids do not have it.
const shedBit = 1 << 63

// refused takes in that a connection has not moved.
func (s *shedding) refused(id uint64) {
	s.d.count.unshed.Inc()
	select {
	case s.failed <- id &^ shedBit:
	default:
	}
}
