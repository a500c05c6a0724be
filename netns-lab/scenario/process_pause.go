// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"
)

// Milliseconds are quantiles of times, in milliseconds.
type Milliseconds struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

func milliseconds(v []float64) Milliseconds {
	if len(v) == 0 {
		return Milliseconds{}
	}
	v = slices.Sorted(slices.Values(v))
	return Milliseconds{Min: v[0], Median: v[len(v)/2], P99: v[len(v)*99/100], Max: v[len(v)-1]}
}

// PauseConfig describes a measurement of what clients of an echo server feel when it moves.
type PauseConfig struct {
	// Server is the command of an echo server.
	Server []string
	// Connections is how many clients there are; 1 when zero. Each asks again Interval after the answer: 1 ms when zero.
	Connections int
	Interval    time.Duration
	// Moves is how often the server moves; 10 when zero. Rest is the time between two moves: restMoves when zero.
	Moves int
	Rest  time.Duration
}

// restMoves is the time between two moves. A restored socket's first packet asks the client for an answer, which starts what is unsent; a kernel gives
// such answers every 500 ms at most (net.ipv4.tcp_invalid_ratelimit), and without one the server waits for a timer.
const restMoves = 700 * time.Millisecond

func (c PauseConfig) withDefaults() PauseConfig {
	if c.Connections == 0 {
		c.Connections = 1
	}
	if c.Interval == 0 {
		c.Interval = time.Millisecond
	}
	if c.Moves == 0 {
		c.Moves = 10
	}
	if c.Rest == 0 {
		c.Rest = restMoves
	}
	return c
}

// Pauses is what the clients of a moving server have felt.
type Pauses struct {
	Mover string `json:"mover"`
	Moves int    `json:"moves"`
	// PauseMillis are the longest answers around each move, of each client; WorstMillis those of the client that felt it most.
	PauseMillis Milliseconds `json:"pauseMillis"`
	WorstMillis Milliseconds `json:"worstMillis"`
	// IdleMillis are the longest answers in the time between two moves.
	IdleMillis Milliseconds `json:"idleMillis"`
	// MoveMillis are the moves as a whole, FreezeMillis the time in which the server stood still, if the mover says so.
	MoveMillis   Milliseconds `json:"moveMillis"`
	FreezeMillis Milliseconds `json:"freezeMillis"`
	ImageBytes   int64        `json:"imageBytes"`
	Answers      int64        `json:"answers"`
	ClientErrors int          `json:"clientErrors"`
	Reconnects   int          `json:"reconnects"`
	// RetransmissionTimeouts and Retransmitted are the clients', as their kernel counts (TCP_INFO): timeouts, and segments sent again.
	RetransmissionTimeouts int `json:"retransmissionTimeouts"`
	Retransmitted          int `json:"retransmitted"`
	// Errors are some of those that clients saw.
	Errors []string `json:"errors,omitempty"`

	pause, worst, idle, total, freeze []float64
}

// Add adds what another measurement has found.
func (p *Pauses) Add(q *Pauses) {
	p.Mover, p.ImageBytes = q.Mover, q.ImageBytes
	p.Moves += q.Moves
	p.Answers += q.Answers
	p.ClientErrors += q.ClientErrors
	p.Reconnects += q.Reconnects
	p.RetransmissionTimeouts += q.RetransmissionTimeouts
	p.Retransmitted += q.Retransmitted
	p.Errors = append(p.Errors, q.Errors...)
	p.pause, p.worst, p.idle = append(p.pause, q.pause...), append(p.worst, q.worst...), append(p.idle, q.idle...)
	p.total, p.freeze = append(p.total, q.total...), append(p.freeze, q.freeze...)
	p.summarize()
}

func (p *Pauses) summarize() {
	p.PauseMillis, p.WorstMillis, p.IdleMillis = milliseconds(p.pause), milliseconds(p.worst), milliseconds(p.idle)
	p.MoveMillis, p.FreezeMillis = milliseconds(p.total), milliseconds(p.freeze)
}

// MeasurePauses starts an echo server, connects clients and moves the server to and fro.
func MeasurePauses(ctx context.Context, b *ProcessBed, m ProcessMover, cfg PauseConfig) (*Pauses, error) {
	cfg = cfg.withDefaults()
	s, err := b.Place(ctx, m, cfg.Server)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (*net.TCPConn, error) { return b.Dial(ctx, m.Address()) }
	g, err := startAskers(ctx, cfg.Connections, cfg.Interval, dial, func(int) dialogue { return &lineDialogue{} })
	if err != nil {
		return nil, fmt.Errorf("%w; the server says: %s", err, s.Log())
	}
	defer g.close()
	p, err := measurePauses(ctx, m, s, g, cfg.Moves, cfg.Rest)
	if err != nil {
		return nil, err
	}
	g.close()
	return p, b.killServers()
}

// Place starts a server on the first host, the only one, and waits until its address leads there.
func (b *ProcessBed) Place(ctx context.Context, m ProcessMover, command []string) (*Server, error) {
	if err := b.killServers(); err != nil {
		return nil, err
	}
	home := ProcessHosts()[0]
	if err := m.Place(home); err != nil {
		return nil, err
	}
	s, err := b.StartServer(ctx, home, command...)
	if err != nil {
		return nil, err
	}
	return s, b.await(ctx, s.d, func(ctx context.Context) error {
		conn, err := b.Dial(ctx, m.Address())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// measurePauses moves a server while clients ask.
func measurePauses(ctx context.Context, m ProcessMover, s *Server, g *askers, moves int, rest time.Duration) (*Pauses, error) {
	p := &Pauses{Mover: m.Name()}
	before := g.counts()
	for range moves {
		g.longest()
		time.Sleep(rest)
		p.idle = append(p.idle, g.longest()...)
		to := otherHost(s.Host)
		moved, err := m.Move(ctx, s, to)
		if err != nil {
			return nil, fmt.Errorf("%s, move %d to %s: %w", m.Name(), p.Moves+1, to, err)
		}
		if err := g.await(ctx); err != nil {
			return nil, fmt.Errorf("%s, after move %d to %s: %w", m.Name(), p.Moves+1, to, err)
		}
		felt := g.longest()
		p.pause, p.worst = append(p.pause, felt...), append(p.worst, slices.Max(felt))
		p.total, p.freeze = append(p.total, millis(moved.Total)), append(p.freeze, millis(moved.Freeze))
		p.ImageBytes = moved.ImageBytes
		p.Moves++
	}
	p.summarize()
	p.count(g, before)
	return p, nil
}

// count takes over what the clients have counted since before.
func (p *Pauses) count(g *askers, before askerCounts) {
	c := g.counts()
	p.Answers = c.answers - before.answers
	p.ClientErrors, p.Reconnects = c.errors-before.errors, c.reconnects-before.reconnects
	p.Retransmitted = c.segments - before.segments
	p.RetransmissionTimeouts = c.timeouts - before.timeouts
	p.Errors = nil
	for _, err := range g.errors() {
		p.Errors = append(p.Errors, err.Error())
	}
}

// otherHost returns the one of the two hosts that is not this one.
func otherHost(host string) string {
	hosts := ProcessHosts()
	if host == hosts[0] {
		return hosts[1]
	}
	return hosts[0]
}
