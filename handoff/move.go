// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// move is one connection's unfinished move, from the agent's request on until its last word. While it is in
// registration.moves it belongs to whoever holds registration.mu; who removes it from there decides how it ends.
//
//	Export ► asking ─ Exported ► sent ─ Resume, Migrated ► over
//	Import ► asking ─ Imported ► sent ─ Activate, Withdraw ► over
//
// A link that dies before sent takes the move back; after sent, the next agent is asked by Recover.
type move struct {
	id     uint64
	conn   *Conn
	peer   string // the host that the connection is to go to; empty when it is to arrive
	target bool   // the connection is to arrive
	late   bool   // what the Import said of it
	sent   bool   // the agent has been given the socket, or been told that the application takes it
	cancel context.CancelFunc
	timer  *time.Timer // set with sent: gives the move up
}

// begin enters mv, unless its id or its connection is already being moved.
func (r *registration) begin(mv *move) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.moves[mv.id]; ok {
		return fmt.Errorf("%w: id %d is in use", errFrame, mv.id)
	}
	r.moves[mv.id] = mv
	return nil
}

// end removes mv and reports whether it was still there: the caller then has the last word on it. r.mu is held.
func (r *registration) end(mv *move) bool {
	if r.moves[mv.id] != mv {
		return false
	}
	delete(r.moves, mv.id)
	if mv.timer != nil {
		mv.timer.Stop()
	}
	mv.cancel()
	return true
}

// markSent starts the wait for the agent's last word. r.mu is held.
func (r *registration) markSent(mv *move, limit time.Duration) {
	mv.sent = true
	mv.timer = time.AfterFunc(limit+r.cfg.RecoverTimeout, func() {
		r.mu.Lock()
		over := r.end(mv)
		r.mu.Unlock()
		if over {
			r.cfg.Logger.Error("a move was never finished, its connection is closed", "flow", mv.conn.flow.String())
			mv.conn.finish(eventAbandon)
			r.settle()
		}
	})
}

// conclude ends the move of this id, if there is one in this direction, as the agent says.
func (r *registration) conclude(id uint64, target bool, f func(*move)) {
	r.mu.Lock()
	mv := r.moves[id]
	ok := mv != nil && mv.target == target && r.end(mv)
	r.mu.Unlock()
	if ok {
		f(mv)
		r.settle()
	}
}

// recoverRetry is the time between two questions to an agent that refused to take up a move.
const recoverRetry = 200 * time.Millisecond

func (r *registration) recoverLater(link *wire.Link, id uint64) {
	time.AfterFunc(recoverRetry, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if mv := r.moves[id]; mv != nil && mv.sent && r.link == link {
			r.recover(id, mv)
		}
	})
}

// recover asks a new agent how a move of its predecessor ended. r.mu is held.
func (r *registration) recover(id uint64, mv *move) {
	fd, err := mv.conn.descriptor()
	if err != nil {
		r.cfg.Logger.Error("cannot ask the agent about a move", "flow", mv.conn.flow.String(), "error", err)
		return
	}
	epoch := mv.conn.epoch
	if mv.target {
		epoch--
	}
	_ = r.link.SendFD(id, &wire.Recover{
		Flow: mv.conn.flow, Service: r.cfg.Service, Epoch: epoch, Target: mv.target, Peer: mv.peer, Late: mv.late,
	}, fd)
}
