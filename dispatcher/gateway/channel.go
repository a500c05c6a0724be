// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// How often the dispatcher is asked whether it is there, and after which silence it is not.
const (
	pingInterval = time.Second
	silence      = 3 * time.Second
)

// channel keeps a connection to the dispatcher. What happens on it goes to events.
type channel struct {
	dial   func(context.Context) (*wire.Link, error)
	hold   time.Duration
	events chan<- event
	log    *slog.Logger
}

// event is something that the gateway's loop must know of: one field is set.
type event struct {
	frame    []byte // diverted, from the tap of that number
	tap      int
	link     *wire.Link // a connection stands
	down     bool       // it is gone
	answered uint64     // the report is installed
	rejected *rejection
}

type rejection struct {
	id     uint64
	reason *wire.Refuse
}

// run connects again and again until ctx ends.
func (c *channel) run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		link, err := c.connect(ctx)
		if err == nil {
			failures = 0
			c.log.Info("connected to the dispatcher", "address", link.RemoteAddr())
			err = c.serve(ctx, link)
		}
		if ctx.Err() != nil {
			break
		}
		failures++
		if failures == 1 {
			c.log.Warn("no connection to the dispatcher", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(redial(failures)):
		}
	}
	return nil
}

// connect returns a link on which both sides have said who they are.
func (c *channel) connect(ctx context.Context) (*wire.Link, error) {
	link, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	timer := time.AfterFunc(silence, func() { _ = link.Close() })
	defer timer.Stop()
	if err = link.Send(0, &wire.GatewayHello{Hold: c.hold}); err == nil {
		var f wire.Frame
		if f, _, err = link.Receive(); err == nil {
			switch m := f.Message.(type) {
			case *wire.GatewayHello:
				return link, nil
			case *wire.Refuse:
				err = &wire.RefusedError{Who: "dispatcher", Code: m.Code, Reason: m.Reason}
			default:
				err = fmt.Errorf("%w: %v instead of GatewayHello", wire.ErrMalformed, f.Message.Kind())
			}
		}
	}
	_ = link.Close()
	return nil, err
}

// serve receives on a link until it fails, and closes it.
func (c *channel) serve(ctx context.Context, link *wire.Link) error {
	defer link.Close() //nolint:errcheck // it has failed already
	pinging, cancel := context.WithCancel(ctx)
	defer cancel()
	var heard atomic.Int64
	heard.Store(time.Now().UnixNano())
	go c.ping(pinging, link, &heard)
	if !c.tell(ctx, event{link: link}) {
		return ctx.Err()
	}
	defer c.tell(ctx, event{down: true})
	for {
		f, _, err := link.Receive()
		if err != nil {
			return err
		}
		heard.Store(time.Now().UnixNano())
		switch m := f.Message.(type) {
		case *wire.Pong:
		case *wire.Installed:
			c.tell(ctx, event{answered: f.ID})
		case *wire.Refuse:
			c.tell(ctx, event{rejected: &rejection{id: f.ID, reason: m}})
		default:
			return fmt.Errorf("%w: %v from a dispatcher", wire.ErrMalformed, f.Message.Kind())
		}
	}
}

// ping asks for signs of life, and closes the link when there are none.
func (c *channel) ping(ctx context.Context, link *wire.Link, heard *atomic.Int64) {
	t := time.NewTicker(pingInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = link.Close()
			return
		case now := <-t.C:
			if now.Sub(time.Unix(0, heard.Load())) > silence || link.Send(0, &wire.Ping{}) != nil {
				_ = link.Close()
				return
			}
		}
	}
}

// tell reports whether the loop has taken the event.
func (c *channel) tell(ctx context.Context, e event) bool {
	select {
	case c.events <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// message returns a report as it goes over the wire.
func (r report) message() *wire.Halves {
	return &wire.Halves{Flow: tcprepair.NewFlow(r.flow.Server, r.flow.Client), Protocol: r.flow.Protocol, Halves: r.halves}
}

// isSignalling says whether a protocol can carry signalling.
func isSignalling(protocol uint8) bool {
	return protocol == protocolTCP || protocol == protocolUDP
}
