// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
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
	// closeBy is set when the configuration has the host no more: the connection ends after it, once no move uses it.
	closeBy time.Time
	// unmodified is set when it has asked whether unmodified servers can be served here.
	unmodified bool
	// told is what it has heard of that.
	told *string
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
			name, link, err := e.self.Accept(ctx, conn, e.known)
			if err != nil {
				e.metrics.rejected.Inc()
				e.log.Warn("refused a connection to the agents' port", "from", conn.RemoteAddr(), "error", err)
				return
			}
			in := &incoming{e: e, name: name, link: link, heard: time.Now()}
			in.receive()
		}()
	}
}

func (e *engine) known(host string) bool {
	_, ok := e.shared.Load().cfg.Node(host)
	return ok
}

// settle is outgoing.settle's counterpart. An entry does not know whether a host has moves under way: therefore it waits.
func (in *incoming) settle(now time.Time) {
	if in.closeBy.IsZero() || now.Before(in.closeBy) {
		return
	}
	for _, t := range in.e.targets {
		if t.from == in {
			return
		}
	}
	for _, t := range in.e.arrivals {
		if t.from == in {
			return
		}
	}
	in.lost(errNoPeer)
}

func (in *incoming) receive() {
	in.e.post(func(e *engine) {
		e.incoming[in] = struct{}{}
		if !e.known(in.name) {
			in.closeBy = time.Now() // since it was accepted
		}
	})
	for {
		f, _, err := in.link.Receive()
		if err != nil {
			in.e.post(func(*engine) { in.lost(err) })
			return
		}
		if m, ok := f.Message.(*wire.Image); ok {
			in.e.image(f.ID, m)
			continue
		}
		if m, ok := f.Message.(*wire.Memory); ok {
			in.e.memory(f.ID, m)
			continue
		}
		in.e.handle(func(e *engine) {
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
	if err := in.e.queue(in.link, id, m, -1); err != nil {
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
	in.e.arrivalsLost(in, err)
}

// request handles a frame from an agent that opened the connection.
func (e *engine) request(in *incoming, f wire.Frame) {
	if e.requestProcess(in, f) {
		return
	}
	switch m := f.Message.(type) {
	case *wire.Ping:
		in.send(f.ID, &wire.Pong{})
	case *wire.Presence:
		e.presence(in, m)
	case *wire.Ended:
		e.flowEnded(in.name, m)
	case *wire.Offer:
		e.offered(in, f.ID, m)
	case *wire.Handoff:
		e.handedOff(in, f.ID, m)
	case *wire.Locate:
		e.locate(in, f.ID, m)
	case *wire.Relocate:
		e.relocate(in, f.ID, m)
	case *wire.Cookies:
		e.cookies(in, f.ID, m)
	case *wire.Chunk, *wire.StateSent, *wire.Transfer, *wire.Held, *wire.Cancel:
		if t := e.takers[f.ID]; t != nil && t.from == in {
			t.frame(f.Message)
			return
		}
		t := e.targets[f.ID]
		if t == nil || t.from != in {
			switch m.(type) {
			case *wire.Transfer:
				in.send(f.ID, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "nothing was accepted under this id"})
			case *wire.Cancel:
				e.stopWaiting(in, f.ID)
			}
			return
		}
		t.frame(f.Message)
	default:
		e.reach("entry", f.Message.Kind().String())
		if answer, ok := e.entry.Answer(time.Now(), f.ID, m, in.name); ok {
			e.reach("entry", f.Message.Kind().String()+" answered")
			in.send(f.ID, answer)
			return
		}
		in.lost(fmt.Errorf("%w: %v as a request", wire.ErrMalformed, f.Message.Kind()))
	}
}
