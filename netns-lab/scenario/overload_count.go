// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"context"
	"fmt"
	"time"
)

// OverloadDatagrams says where the datagrams of a run's sessions are.
type OverloadDatagrams struct {
	// Sent are those of the clients, Arrived those that have come to the servers.
	Sent    int `json:"sent"`
	Arrived int `json:"arrived"`
	// Unplaced are first datagrams that the kernel let in, and that no server was found for.
	Unplaced int `json:"unplaced"`
	// Missing are neither there nor among those that the dispatcher's kernel says it has dropped.
	Missing int `json:"missing"`
	// Sessions are those of which a server has seen something.
	Sessions int `json:"sessions"`
}

// maxMissing is the share of datagrams that may get lost: sockets' buffers are bounded, and a machine that is busy lets them fill.
const maxMissing = 0.01

// problem says what is wrong, if anything.
func (d *OverloadDatagrams) problem() string {
	if d.Unplaced > 0 {
		return fmt.Sprintf("the dispatcher found no server for %d first datagrams", d.Unplaced)
	}
	if n := max(d.Missing, -d.Missing); float64(n) > maxMissing*float64(d.Sent) {
		return fmt.Sprintf("of %d datagrams %d arrived, and the kernel's counters do not tell of %d", d.Sent, d.Arrived, d.Missing)
	}
	return ""
}

// counting reads what has happened since it was made; d is nil for sessions that are not of datagrams.
type counting func(ctx context.Context) (d *OverloadDatagrams, dropped, degraded int, err error)

// beginCount begins to count. A client of datagrams begins a new run.
func (o *overload) beginCount(ctx context.Context, client player) (counting, error) {
	before, err := o.dropped(ctx)
	if err != nil {
		return nil, err
	}
	queries, datagrams := client.(*querier)
	if datagrams {
		o.run++
		queries.run = o.run
		queries.sent.Store(0)
		for _, u := range o.upstreams {
			u.begin(o.run)
		}
	}
	return func(ctx context.Context) (d *OverloadDatagrams, dropped, degraded int, err error) {
		for deadline := time.Now().Add(settleTime); ; {
			now, err := o.dropped(ctx)
			if err != nil {
				return nil, 0, 0, err
			}
			dropped, degraded = now.refused-before.refused, now.degraded-before.degraded
			if !datagrams {
				return nil, dropped, degraded, nil
			}
			if d, err = o.datagrams(int(queries.sent.Load())); err != nil {
				return nil, 0, 0, err
			}
			d.Unplaced = now.unplaced - before.unplaced
			d.Missing = d.Sent - d.Arrived - dropped - degraded - d.Unplaced
			if d.Missing <= 0 || time.Now().After(deadline) {
				return d, dropped, degraded, nil
			}
			if err := pause(ctx, 10*time.Millisecond); err != nil {
				return nil, 0, 0, err
			}
		}
	}, nil
}

// settleTime is how long datagrams may be under way.
const settleTime = 500 * time.Millisecond

// datagrams adds up what has come to the servers in this run.
func (o *overload) datagrams(sent int) (*OverloadDatagrams, error) {
	d := &OverloadDatagrams{Sent: sent}
	for _, u := range o.upstreams {
		arrived, sessions, err := u.counted()
		if err != nil {
			return nil, err
		}
		d.Arrived += arrived
		d.Sessions += sessions
	}
	return d, nil
}

// tellLate finds the sessions that a client of datagrams takes for refused, because nobody has answered, and that have come to a server: they are late.
func (o *overload) tellLate(ends []end) {
	for i, e := range ends {
		if e.fate != visitRefused {
			continue
		}
		for _, u := range o.upstreams {
			if u.saw(i) {
				ends[i].fate = visitLate
			}
		}
	}
}
