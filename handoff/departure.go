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
		err = link.SendNow(mv.id, &wire.Exported{State: tail, Epoch: mv.conn.epoch, Service: r.cfg.Service}, fd)
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
