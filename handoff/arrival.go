// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"

	"github.com/rehome-net/rehome/handoff/wire"
)

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
	if m.Fresh {
		r.welcome(c)
		return nil
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
			if err = link.SendNow(id, &wire.Imported{}, -1); err == nil {
				r.markSent(mv, 0)
				r.mu.Unlock()
				c.adopt()
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

// welcome gives a connection that a dispatcher has accepted to Accept.
func (r *registration) welcome(c *Conn) {
	r.ln.remember(c)
	if err := c.activate(); err != nil {
		r.cfg.Logger.Error("a connection from the dispatcher is lost", "flow", c.flow.String(), "error", err)
		r.ln.forget(c)
		return
	}
	r.ln.deliver(c)
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
