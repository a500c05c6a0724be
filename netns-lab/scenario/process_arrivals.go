// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ArrivalsConfig describes a measurement of new connections that come while an echo server with others moves.
type ArrivalsConfig struct {
	// Server is the command of an echo server.
	Server []string
	// Kept is how many connections stay (100), Rate how many new ones come each second (500). A new one asks once and ends.
	Kept, Rate int
	// Moves is how often the server moves: 10 when zero. Rest is the time before each: restMoves when zero.
	Moves int
	Rest  time.Duration
}

// Arrivals is what became of the new connections.
type Arrivals struct {
	Mover string `json:"mover"`
	// Moves have happened, FailedMoves have not: the server went on where it was.
	Moves       int `json:"moves"`
	FailedMoves int `json:"failedMoves"`
	// New connections came; Refused, Reset and Failed otherwise did not get their answer.
	New     int `json:"new"`
	Refused int `json:"refused"`
	Reset   int `json:"reset"`
	Failed  int `json:"failed"`
	// ConnectMillis are the times from connect to the answer.
	ConnectMillis Milliseconds `json:"connectMillis"`
	// Kept are the connections that were there before.
	Kept Pauses `json:"kept"`
	// Errors are some of those that clients and the mover saw.
	Errors []string `json:"errors,omitempty"`
}

// arrivals makes new connections at a steady rate, whatever becomes of those before.
type arrivals struct {
	dial func(context.Context) (*net.TCPConn, error)

	mu    sync.Mutex
	times []float64
	a     Arrivals
}

// run makes connections until stop is closed, and returns when all of them are through.
func (r *arrivals) run(ctx context.Context, rate int, stop <-chan struct{}) {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	var under sync.WaitGroup
	defer under.Wait()
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			under.Go(func() { r.one(ctx) })
		}
	}
}

// one connects, asks, and notes what came of it.
func (r *arrivals) one(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	begin := time.Now()
	conn, err := r.dial(ctx)
	if err == nil {
		d := &lineDialogue{}
		d.open(conn)
		_ = conn.SetDeadline(begin.Add(answerLimit))
		err = errors.Join(d.ask(), conn.Close())
	}
	took := time.Since(begin)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.a.New++
	switch {
	case err == nil:
		r.times = append(r.times, millis(took))
		return
	case errors.Is(err, unix.ECONNREFUSED):
		r.a.Refused++
	case errors.Is(err, unix.ECONNRESET):
		r.a.Reset++
	default:
		r.a.Failed++
	}
	r.note(err)
}

// note keeps an error for the report; r.mu is held.
func (r *arrivals) note(err error) {
	if len(r.a.Errors) < keptErrors {
		r.a.Errors = append(r.a.Errors, err.Error())
	}
}

// MeasureArrivals starts an echo server, connects the clients that stay, and moves the server while new ones come.
func MeasureArrivals(ctx context.Context, b *ProcessBed, m ProcessMover, cfg ArrivalsConfig) (*Arrivals, error) {
	if cfg.Kept == 0 {
		cfg.Kept = 100
	}
	if cfg.Rate == 0 {
		cfg.Rate = 500
	}
	common := PauseConfig{Moves: cfg.Moves, Rest: cfg.Rest}.withDefaults()
	s, err := b.Place(ctx, m, cfg.Server)
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context) (*net.TCPConn, error) { return b.Dial(ctx, m.Address()) }
	g, err := startAskers(ctx, cfg.Kept, time.Duration(cfg.Kept)*100*time.Microsecond, dial, func(int) dialogue { return &lineDialogue{} })
	if err != nil {
		return nil, fmt.Errorf("%w; the server says: %s", err, s.Log())
	}
	defer g.close()
	r := &arrivals{dial: dial, a: Arrivals{Mover: m.Name()}}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx, cfg.Rate, stop)
	}()
	before := g.counts()
	var felt []float64
	for range common.Moves {
		time.Sleep(common.Rest)
		g.longest()
		if _, err := m.Move(ctx, s, otherHost(s.Host)); err != nil {
			r.mu.Lock()
			r.a.FailedMoves++
			r.note(err)
			r.mu.Unlock()
			if _, gone := processTree(s.PID); gone != nil {
				break
			}
			continue
		}
		if err = g.await(ctx); err != nil {
			break
		}
		felt = append(felt, g.longest()...)
		r.a.Moves++
	}
	close(stop)
	<-done
	r.a.ConnectMillis = milliseconds(r.times)
	r.a.Kept = Pauses{Mover: m.Name(), Moves: r.a.Moves, PauseMillis: milliseconds(felt)}
	r.a.Kept.count(g, before)
	g.close()
	return &r.a, errors.Join(err, b.killServers())
}
