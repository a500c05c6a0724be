// SPDX-License-Identifier: Apache-2.0

package load

import (
	"slices"
	"time"
)

// leadTime is for how long before its announced time a server should be empty: a move takes its time, and one that failed is tried again.
const leadTime = 2 * time.Second

// leastLoad is what a server that gives all its sessions away counts for at least, so that one without a known load spreads them, too.
const leastLoad = 0.01

// evacuate has all sessions of servers[from] leave before its announced time. A target may be lifted above Low, or shed itself: anywhere is better
// than a server that is gone. The bound on moves gives way when there is not time enough for it.
func (s *Shedder) evacuate(now time.Time, moves []Move, from int, servers []Server, expected []float64) []Move {
	server := &servers[from]
	left := server.Fails.Sub(now)
	if left <= 0 {
		return moves // it is too late, and its agent may not be there to ask
	}
	list := s.candidates(now, server, 0)
	total := 0.0
	for _, c := range server.Sessions {
		total += max(c.Weight, 0)
	}
	room := max(s.tokens, s.due(len(list), left))
	for _, c := range list {
		if room < 1 {
			break
		}
		share := max(server.Load, leastLoad) * c.Weight / total
		to := refuge(from, c.To, servers, expected)
		if to < 0 {
			continue
		}
		m := Move{Session: c.ID, From: server.Host, To: servers[to].Host, Share: share}
		moves = append(moves, m)
		s.moved = append(s.moved, moved{m, now})
		expected[from] = max(expected[from]-share, 0)
		expected[to] += share
		s.tokens = max(s.tokens-1, 0)
		room--
	}
	return moves
}

// due returns how many of n sessions must go now, so that the last one goes leadTime before the end: all when there is no more than that.
func (s *Shedder) due(n int, left time.Duration) float64 {
	if left -= leadTime; left <= s.passed {
		return float64(n)
	}
	return float64(n) * s.passed.Seconds() / left.Seconds()
}

// refuge returns the place of the server that is expected to be the least loaded of those that take sessions, one of hosts if there are any; -1 when
// none does.
func refuge(from int, hosts []uint32, servers []Server, expected []float64) int {
	best := -1
	for i := range servers {
		switch {
		case i == from || !servers[i].Takes || !servers[i].Fails.IsZero():
		case len(hosts) > 0 && !slices.Contains(hosts, servers[i].Host):
		case best < 0 || expected[i] < expected[best]:
			best = i
		}
	}
	return best
}
