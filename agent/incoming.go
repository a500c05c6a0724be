// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

// incoming is a connection that another host's agent has opened, to make requests of this one.
type incoming struct {
	e     *engine
	name  string
	link  *wire.Link
	heard time.Time
}

// servePeers accepts other agents until the listener is closed.
func (e *engine) servePeers(ctx context.Context, ln net.Listener) error {
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			e.log.Warn("cannot accept an agent", "error", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		go func() {
			in, err := e.welcome(ctx, conn)
			if err != nil {
				e.metrics.rejected.Inc()
				e.log.Warn("refused a connection to the agents' port", "from", conn.RemoteAddr(), "error", err)
				_ = conn.Close()
				return
			}
			in.receive()
		}()
	}
}

// welcome finds out who has connected.
func (e *engine) welcome(ctx context.Context, conn net.Conn) (*incoming, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var state *tls.ConnectionState
	if e.identity != nil {
		c := tls.Server(conn, e.identity.server())
		if err := c.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		s := c.ConnectionState()
		state, conn = &s, c
	}
	link := wire.NewLink(conn)
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	f, _, err := link.Receive()
	if err != nil {
		_ = link.Close()
		return nil, err
	}
	in := &incoming{e: e, link: link, heard: time.Now()}
	if in.name, err = e.identify(f, state); err == nil {
		err = link.Send(0, wire.NewHello(e.cfg.Host, Version()))
	}
	if err != nil {
		link.Drain(time.Second)
		_ = link.Close()
		return nil, err
	}
	return in, nil
}

// identify checks a Hello: its sender must be a configured peer and, under TLS, have that peer's certificate.
func (e *engine) identify(f wire.Frame, state *tls.ConnectionState) (string, error) {
	h, ok := f.Message.(*wire.Hello)
	if !ok {
		return "", fmt.Errorf("%w: %v instead of Hello", wire.ErrMalformed, f.Message.Kind())
	}
	if _, err := wire.Negotiate(h); err != nil {
		return "", err
	}
	if h.Name == e.cfg.Host {
		return "", fmt.Errorf("the host there calls itself %q, which is this host's name", h.Name)
	}
	if _, ok := e.cfg.node(h.Name); !ok {
		return "", fmt.Errorf("%q is no configured peer: add it to peers", h.Name)
	}
	if state != nil {
		if err := peerIs(*state, h.Name); err != nil {
			return "", err
		}
	}
	return h.Name, nil
}

func (in *incoming) receive() {
	in.e.post(func(e *engine) { e.incoming[in] = struct{}{} })
	for {
		f, _, err := in.link.Receive()
		if err != nil {
			in.e.post(func(*engine) { in.lost(err) })
			return
		}
		in.e.post(func(e *engine) {
			if _, ok := e.incoming[in]; ok {
				in.heard = time.Now()
				e.request(in, f)
			}
		})
	}
}

// send answers; to a source that is gone with a former agent it says nothing.
func (in *incoming) send(id uint64, m wire.Message) {
	if in.link == nil {
		return
	}
	if err := in.link.Send(id, m); err != nil {
		in.lost(err)
	}
}

func (in *incoming) lost(err error) {
	if _, ok := in.e.incoming[in]; !ok {
		return
	}
	delete(in.e.incoming, in)
	go in.link.Close() //nolint:errcheck // always nil
	for _, t := range slices.Collect(maps.Values(in.e.targets)) {
		if t.from == in {
			t.step(migration.Event{Kind: migration.PeerLost, Err: err})
		}
	}
}

// request handles a frame from an agent that opened the connection.
func (e *engine) request(in *incoming, f wire.Frame) {
	switch m := f.Message.(type) {
	case *wire.Ping:
		in.send(f.ID, &wire.Pong{})
	case *wire.Presence:
		e.presence(in, m)
	case *wire.Offer:
		e.offered(in, f.ID, m)
	case *wire.Chunk, *wire.StateSent, *wire.Transfer, *wire.Held, *wire.Cancel:
		t := e.targets[f.ID]
		if t == nil || t.from != in {
			if _, ok := m.(*wire.Transfer); ok {
				in.send(f.ID, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "nothing was accepted under this id"})
			}
			return
		}
		t.frame(f.Message)
	case *wire.Lease:
		e.lease(in, f.ID, m)
	case *wire.Commit:
		e.reply(in, f.ID, m.Flow, e.commit(f.ID, m.Flow, m.Epoch, in.name))
	case *wire.Abort:
		e.ledger.Abort(time.Now(), f.ID, m.Flow, in.name)
		e.reply(in, f.ID, m.Flow, e.owner(m.Flow))
	case *wire.Query:
		e.reply(in, f.ID, m.Flow, e.owner(m.Flow))
	default:
		in.lost(fmt.Errorf("%w: %v as a request", wire.ErrMalformed, f.Message.Kind()))
	}
}
