// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// servePeers answers agents, of whose flows this host is the entry, until ctx ends.
func (d *Dispatcher) servePeers(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			d.log.Warn("cannot accept an agent", "error", err)
			wait(ctx, restAfter)
			continue
		}
		go func() {
			name, link, err := d.self.Accept(ctx, conn, func(host string) bool { return d.backend(host) != nil || d.isGateway(host) })
			if err != nil {
				d.count.strangers.Inc()
				d.log.Warn("refused a connection to the agents' port", "from", conn.RemoteAddr(), "error", err)
				return
			}
			if d.isGateway(name) {
				if err := d.sessions.gateways.Serve(ctx, name, link); err != nil {
					d.log.Info("a gateway has gone", "gateway", name, "error", err)
				}
				return
			}
			defer context.AfterFunc(ctx, func() { _ = link.Close() })()
			if err := d.serveAgent(name, link); ctx.Err() == nil {
				d.log.Info("an agent has gone", "backend", name, "error", err)
			}
			_ = link.Close()
		}()
	}
}

// isGateway reports whether a host may report what servers say in signalling.
func (d *Dispatcher) isGateway(host string) bool {
	return d.sessions != nil && d.sessions.gateways.Known(host)
}

// serveAgent answers one agent until its link breaks. One that is no peer any more may go on to say what becomes of its connections.
func (d *Dispatcher) serveAgent(name string, link *wire.Link) error {
	b := d.backend(name)
	if b == nil {
		return fmt.Errorf("%s is no peer any more", name)
	}
	// What an agent says of itself holds for as long as it is there to say otherwise.
	defer func() { b.draining.Store(false) }()
	for {
		f, _, err := link.Receive()
		if err != nil {
			return err
		}
		if now := d.backend(name); now != nil {
			b = now
		}
		answer, err := d.answer(b, f)
		if err == nil && answer != nil {
			err = link.Queue(f.ID, answer, -1)
		}
		if err != nil {
			return err
		}
		if !link.More() {
			link.Flush()
			d.flush()
		}
	}
}

// answer carries out a request, and returns what to say to it, if anything.
func (d *Dispatcher) answer(b *backend, f wire.Frame) (wire.Message, error) {
	switch m := f.Message.(type) {
	case *wire.Ping:
		return &wire.Pong{}, nil
	case *wire.Presence:
		b.draining.Store(m.Draining)
		return nil, nil
	case *wire.Ended:
		d.flowEnded(b, m)
		return nil, nil
	case *wire.Lease:
		// Its application wants to move on a connection that it has just got: that it has it may not have been heard yet.
		if a := b.attemptFor(m.Flow); a != nil && a.epoch+1 == m.Epoch && a.granted() {
			a.step(migration.Event{Kind: migration.Committed})
		}
		if d.sessions != nil {
			var refused *wire.RefusedError
			if errors.As(d.sessions.mayLeave(time.Now(), m.Flow), &refused) {
				return &wire.LeaseRefused{Code: refused.Code, Reason: refused.Reason}, nil
			}
		}
	case *wire.Commit:
		if a := d.attempt(b.name, f.ID); a != nil && a.c.flow == m.Flow && a.epoch == m.Epoch {
			a.step(migration.Event{Kind: migration.CommitAsked})
			if a.granted() {
				return &wire.Owner{Flow: m.Flow, Host: b.name, Epoch: m.Epoch + 1}, nil
			}
			o := d.entry.Owner(m.Flow)
			return &wire.Owner{Flow: m.Flow, Host: o.Host, Epoch: o.Epoch, Unknown: o.Unknown}, nil
		}
		from := d.ownerOf(m.Flow)
		answer, _ := d.entry.Answer(time.Now(), f.ID, m, b.name)
		d.flowMoved(from, d.ownerOf(m.Flow))
		d.accompany(time.Now(), m, answer)
		return answer, nil
	}
	if answer, ok := d.entry.Answer(time.Now(), f.ID, f.Message, b.name); ok {
		d.accompany(time.Now(), f.Message, answer)
		return answer, nil
	}
	return nil, fmt.Errorf("%w: %v as a request to a dispatcher", wire.ErrMalformed, f.Message.Kind())
}
