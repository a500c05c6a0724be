// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
)

// defaultLimit is how long an Export or Prepare that names no limit may take.
const defaultLimit = 10 * time.Second

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

func (r *registration) handleExport(link *wire.Link, id uint64, m *wire.Export) error {
	c := r.ln.find(m.Flow)
	switch {
	case c == nil:
		return link.Send(id, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "no such connection"})
	case r.cfg.Export == nil || r.isClosing():
		return link.Send(id, &wire.Refuse{Code: wire.CodeNotMovable, Reason: "the server exports no connections"})
	case !c.moving.CompareAndSwap(false, true):
		return link.Send(id, &wire.Refuse{Code: wire.CodeNotNow, Reason: "another move of the connection is under way"})
	}
	limit := m.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	ctx, cancel := context.WithTimeout(r.ctx, limit)
	mv := &move{id: id, conn: c, peer: m.Target, cancel: cancel}
	if err := r.begin(mv); err != nil {
		cancel()
		c.moving.Store(false)
		return err
	}
	go func() {
		// An exporter that does not return in time must not make the agent wait.
		stop := context.AfterFunc(ctx, func() { r.refuseExport(link, mv, fmt.Errorf("%w: %w", ErrNotNow, ctx.Err())) })
		state, err := c.export(ctx, r.cfg.Export)
		stop()
		if err != nil {
			c.moving.Store(false)
			r.refuseExport(link, mv, err)
			return
		}
		r.sendExported(link, mv, state, limit)
	}()
	return nil
}

// refuseExport answers Refuse, unless the move is over already.
func (r *registration) refuseExport(link *wire.Link, mv *move, err error) {
	r.mu.Lock()
	over := r.end(mv)
	r.mu.Unlock()
	if !over {
		return
	}
	code := wire.CodeFailed
	switch {
	case errors.Is(err, ErrNotNow):
		code = wire.CodeNotNow
	case errors.Is(err, ErrNotMovable):
		code = wire.CodeNotMovable
	case errors.Is(err, net.ErrClosed):
		code = wire.CodeNoFlow
	}
	_ = link.Send(mv.id, &wire.Refuse{Code: code, Reason: err.Error()})
	r.settle()
}

// sendExported gives the paused connection to the agent. If that is impossible the connection goes on.
func (r *registration) sendExported(link *wire.Link, mv *move, state []byte, limit time.Duration) {
	r.mu.Lock()
	if r.moves[mv.id] != mv {
		r.mu.Unlock()
		mv.conn.endExport()
		mv.conn.moving.Store(false)
		return
	}
	fd, err := mv.conn.commit()
	mv.conn.moving.Store(false)
	if err != nil {
		r.mu.Unlock()
		mv.conn.endExport()
		r.refuseExport(link, mv, err)
		return
	}
	r.markSent(mv, limit)
	chunks, tail := wire.Split(wire.BlobState, state)
	for _, chunk := range chunks {
		err = errors.Join(err, link.Send(mv.id, chunk))
	}
	if err != nil {
		closeFD(fd)
	} else {
		err = link.SendFD(mv.id, &wire.Exported{State: tail, Epoch: mv.conn.epoch, Service: r.cfg.Service}, fd)
	}
	over := err != nil && r.end(mv)
	r.mu.Unlock()
	if over {
		mv.conn.resume()
		r.settle()
	}
}

// handleResume lets an exported connection go on, or calls an export off.
func (r *registration) handleResume(id uint64) {
	r.conclude(id, false, func(mv *move) {
		if mv.sent {
			mv.conn.resume()
			return
		}
		mv.conn.endExport()
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

func (r *registration) handleImport(link *wire.Link, id uint64, m *wire.Import, fd int) error {
	chunks := r.takeChunks(id)
	m.State, m.Ahead = chunks.State(m.State), chunks.Ahead(m.Ahead)
	refuse := func(code wire.Code, reason string) error {
		return link.Send(id, &wire.Refuse{Code: code, Reason: reason})
	}
	if m.Service != r.cfg.Service || r.isClosing() {
		closeFD(fd)
		return refuse(wire.CodeNoService, "the application serves "+r.cfg.Service+" here, until it closes its listener")
	}
	c, err := newImported(m, fd, r.ln.forget)
	if err != nil {
		return refuse(wire.CodeFailed, err.Error())
	}
	if r.cfg.framing != nil {
		c.frames = r.cfg.framing()
	}
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.RecoverTimeout)
	mv := &move{id: id, conn: c, target: true, late: m.Late, cancel: cancel}
	if err := r.begin(mv); err != nil {
		cancel()
		c.finish(eventWithdraw)
		return err
	}
	go func() {
		err := c.askImporter(ctx, r.cfg.Import)
		r.mu.Lock()
		if r.moves[id] != mv {
			r.mu.Unlock()
			c.finish(eventWithdraw)
			return
		}
		if err == nil {
			if err = link.Send(id, &wire.Imported{}); err == nil {
				r.markSent(mv, 0)
				r.mu.Unlock()
				return
			}
		}
		r.end(mv)
		r.mu.Unlock()
		c.finish(eventWithdraw)
		_ = refuse(wire.CodeFailed, err.Error())
		r.settle()
	}()
	return nil
}

// activate makes an imported connection live and gives it to Accept.
func (r *registration) activate(mv *move) {
	c := mv.conn
	if !mv.sent {
		// An agent that does not wait for Imported: the importer's goroutine closes the socket.
		r.cfg.Logger.Error("the agent activated a connection too early", "flow", c.flow.String())
		return
	}
	r.ln.remember(c)
	if err := c.activate(); err != nil {
		r.cfg.Logger.Error("an imported connection is lost", "flow", c.flow.String(), "error", err)
		r.ln.forget(c)
		return
	}
	r.ln.deliver(c)
}

// handleWithdraw forgets a connection that does not come, or what was sent ahead of it.
func (r *registration) handleWithdraw(id uint64) {
	r.takeChunks(id)
	r.conclude(id, true, func(mv *move) {
		if mv.sent {
			mv.conn.finish(eventWithdraw)
		}
	})
}

func (r *registration) handlePrepare(link *wire.Link, id uint64, m *wire.Prepare) error {
	c := r.ln.find(m.Flow)
	if c == nil {
		return link.Send(id, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "no such connection"})
	}
	if r.cfg.Prepare == nil {
		return link.Send(id, &wire.Prepared{})
	}
	limit := m.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	go func() {
		ctx, cancel := context.WithTimeout(r.ctx, limit)
		defer cancel()
		ahead, err := r.cfg.Prepare(ctx, c)
		if err == nil && len(ahead) > MaxState {
			err = fmt.Errorf("%d bytes to send ahead, at most %d", len(ahead), MaxState)
		}
		if err != nil {
			_ = link.Send(id, &wire.Refuse{Code: wire.CodeFailed, Reason: err.Error()})
			return
		}
		chunks, tail := wire.Split(wire.BlobAhead, ahead)
		for _, chunk := range chunks {
			_ = link.Send(id, chunk)
		}
		_ = link.Send(id, &wire.Prepared{Ahead: tail})
	}()
	return nil
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
