// SPDX-License-Identifier: Apache-2.0

package load

import (
	"cmp"
	"slices"
	"time"
)

// Shedder decides which sessions leave servers that are too loaded (M-TCP 8). It is for one goroutine.
type Shedder struct {
	cfg   ShedConfig
	hosts map[uint32]*shedding
	// moved are the moves that reports may not show yet, the oldest first.
	moved []moved
	// tokens are the sessions that may be moved now; they grow to one second's worth.
	tokens float64
	filled time.Time
	// passed is the time between the last two calls of Plan.
	passed time.Duration
}

type moved struct {
	Move
	at time.Time
}

// shedding is what is remembered of a server.
type shedding struct {
	// above is since when it is above High; zero when it is not.
	above  time.Time
	active bool
}

// NewShedder returns a shedder, or an error that says what is wrong with the configuration.
func NewShedder(config ShedConfig) (*Shedder, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Shedder{cfg: config, hosts: make(map[uint32]*shedding), tokens: float64(config.Rate)}, nil
}

// Config returns the configuration, defaults filled in.
func (s *Shedder) Config() ShedConfig { return s.cfg }

// Sheds reports whether a server is giving sessions away.
func (s *Shedder) Sheds(host uint32) bool { return s.hosts[host] != nil && s.hosts[host].active }

// Failed takes back a move that did not happen: the session is where it was.
func (s *Shedder) Failed(session uint64) {
	s.moved = slices.DeleteFunc(s.moved, func(m moved) bool { return m.Session == session })
}

// Plan returns what to move now. Servers' loads are the newest that are known; it is to be called every few hundred milliseconds, or with
// every load vector.
func (s *Shedder) Plan(now time.Time, servers []Server) []Move {
	s.refill(now)
	s.moved = slices.DeleteFunc(s.moved, func(m moved) bool { return now.Sub(m.at) >= s.cfg.Settle })
	expected := s.expect(servers)
	s.observe(now, servers, expected)
	var moves []Move
	for i := range servers {
		if !servers[i].Fails.IsZero() {
			moves = s.evacuate(now, moves, i, servers, expected)
		}
	}
	for i := range servers {
		if servers[i].Fails.IsZero() && s.Sheds(servers[i].Host) {
			moves = s.relieve(now, moves, i, servers, expected)
		}
	}
	return moves
}

// refill lets moves be made again as time passes.
func (s *Shedder) refill(now time.Time) {
	s.passed = 0
	if passed := now.Sub(s.filled); !s.filled.IsZero() && passed > 0 {
		s.passed = passed
		s.tokens = min(s.tokens+passed.Seconds()*float64(s.cfg.Rate), float64(s.cfg.Rate))
	}
	s.filled = now
}

// expect returns the load that each server will have when the moves made so far show.
func (s *Shedder) expect(servers []Server) []float64 {
	change := make(map[uint32]float64)
	for _, m := range s.moved {
		change[m.From] -= m.Share
		change[m.To] += m.Share
	}
	expected := make([]float64, len(servers))
	for i := range servers {
		expected[i] = max(max(servers[i].Load, 0)+change[servers[i].Host], 0)
	}
	return expected
}

// observe lets servers begin and end to shed.
func (s *Shedder) observe(now time.Time, servers []Server, expected []float64) {
	seen := make(map[uint32]bool, len(servers))
	for i := range servers {
		host := servers[i].Host
		seen[host] = true
		h := s.hosts[host]
		if h == nil {
			h = &shedding{}
			s.hosts[host] = h
		}
		switch {
		case servers[i].Load <= s.cfg.High:
			h.above = time.Time{}
		case h.above.IsZero():
			h.above = now
		}
		if !h.above.IsZero() && now.Sub(h.above) >= s.cfg.Hold {
			h.active = true
		}
		// What is reported must have come below, too: reports that show a move before Settle is over make it count twice in what is expected.
		if expected[i] <= s.cfg.Low && servers[i].Load <= s.cfg.Low {
			h.active = false
		}
	}
	for host := range s.hosts {
		if !seen[host] {
			delete(s.hosts, host)
		}
	}
}

// relieve chooses sessions of servers[from] until it is expected below Low, or nothing can be moved.
func (s *Shedder) relieve(now time.Time, moves []Move, from int, servers []Server, expected []float64) []Move {
	server := &servers[from]
	total := 0.0
	for _, c := range server.Sessions {
		total += max(c.Weight, 0)
	}
	if total == 0 {
		return moves
	}
	// A session's share of the load that is reported, of which what has been moved already is a part.
	share := func(c *Session) float64 { return server.Load * c.Weight / total }
	for _, c := range s.candidates(now, server, s.cfg.Stay) {
		if expected[from] <= s.cfg.Low || s.tokens < 1 {
			break
		}
		to := s.target(from, c.To, share(c), servers, expected)
		if to < 0 {
			continue // a lighter one may fit
		}
		m := Move{Session: c.ID, From: server.Host, To: servers[to].Host, Share: share(c)}
		moves = append(moves, m)
		s.moved = append(s.moved, moved{m, now})
		expected[from] -= m.Share
		expected[to] += m.Share
		s.tokens--
	}
	return moves
}

// candidates returns the sessions that may be moved, and have been there for so long, heavy ones first.
func (s *Shedder) candidates(now time.Time, server *Server, stay time.Duration) []*Session {
	pending := make(map[uint64]bool, len(s.moved))
	for _, m := range s.moved {
		pending[m.Session] = true
	}
	var list []*Session
	for i := range server.Sessions {
		c := &server.Sessions[i]
		if c.Fixed || pending[c.ID] || !(c.Weight > 0) || now.Sub(c.Since) < stay {
			continue
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b *Session) int { return cmp.Or(cmp.Compare(b.Weight, a.Weight), cmp.Compare(a.ID, b.ID)) })
	return list
}

// target returns the place of the server that a session goes to, one of hosts if there are any, -1 when none can take it.
func (s *Shedder) target(from int, hosts []uint32, share float64, servers []Server, expected []float64) int {
	best := -1
	for i := range servers {
		switch {
		case len(hosts) > 0 && !slices.Contains(hosts, servers[i].Host):
		case i == from || !servers[i].Takes || servers[i].Load < 0 || s.Sheds(servers[i].Host) || expected[i]+share > s.cfg.Low:
		case best < 0 || expected[i] < expected[best]:
			best = i
		}
	}
	return best
}
