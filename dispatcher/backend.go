// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// redialAfter is the pause between two tries to connect to an agent.
	redialAfter = 200 * time.Millisecond
	// An agent that has been silent for pingAfter is asked for a sign of life; silence for deadAfter means that it is gone.
	pingAfter = 500 * time.Millisecond
	deadAfter = 2 * time.Second
	tickTime  = 50 * time.Millisecond
	// freshAge is how recently a backend must have been heard of to be granted a flow at once.
	freshAge = 10 * time.Millisecond
)

// backend is a host that serves: the connection to its agent, and the handoffs that wait for its answer.
type backend struct {
	name string
	addr string
	node gate.Node
	self peer.Self
	log  *slog.Logger

	// active counts its connections, as far as this process knows.
	active atomic.Int64
	// draining is the agent's own wish, as it was said on voice, the newest of the connections that it has made. Guarded by mu for changes.
	draining atomic.Bool
	voice    *wire.Link
	heard    atomic.Int64 // time of its last frame, in nanoseconds since 1970
	suspect  atomic.Bool  // it did not answer in time, and has not been heard of since

	mu       sync.Mutex
	link     *wire.Link // nil while there is none
	attempts map[uint64]*attempt
	dirty    atomic.Bool // something is queued
	// flushAll flushes this and all other backends.
	flushAll func()
	// socketless is nil unless a service is; cookies means that the backend makes connections of first packets.
	socketless *socketless
	cookies    atomic.Bool
	// injects means that connections are handed to unmodified servers there; unable is why its host cannot make them, nil as long as it does
	// not say so.
	injects atomic.Bool
	unable  atomic.Pointer[string]
	// management is nil without reports.
	management *management
}

func newBackend(name, addr string, node gate.Node, self peer.Self, flushAll func(), log *slog.Logger) *backend {
	return &backend{
		name: name, addr: addr, node: node, self: self, flushAll: flushAll, log: log, attempts: make(map[uint64]*attempt),
	}
}

// up reports whether the agent can be asked.
func (b *backend) up() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.link != nil && !b.suspect.Load()
}

// hearken takes a connection of the agent's for the one whose word counts. What was said on one before holds until the agent says something
// else on this one, which it does at once.
func (b *backend) hearken(link *wire.Link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.voice = link
}

// wishes takes in what the agent says of itself on a connection. One that has been replaced may end, or be read to its end, late.
func (b *backend) wishes(link *wire.Link, draining bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.voice == link {
		b.draining.Store(draining)
	}
}

// succeed goes on with what the agent has said to a backend whose place b takes.
func (b *backend) succeed(was *backend) {
	was.mu.Lock()
	defer was.mu.Unlock()
	b.voice = was.voice
	b.draining.Store(was.draining.Load())
}

// leaving reports whether its host wants no new connections: it is being drained, or has announced its failure.
func (b *backend) leaving() bool {
	return b.draining.Load() || b.management != nil && b.management.of(b.node).state == availability.Draining
}

// gone reports whether its host's reports say that it is out, whether or not its agent can be asked.
func (b *backend) gone() bool {
	if b.management == nil {
		return false
	}
	s := b.management.of(b.node).state
	return s == availability.Down || s == availability.ApplicationDown
}

// cookiesID is the id of Cookies and its answer; attempts have others.
const cookiesID = 0

// tellCookies tells the agent which connections to make of first packets. A dispatcher without socketless services says so, too: the one
// before it may have had some, and agents go on until they are told.
func (b *backend) tellCookies() {
	ask := &wire.Cookies{}
	if b.socketless != nil {
		ask = b.socketless.ask(b)
	}
	ask.Unmodified = b.injects.Load()
	b.send(cookiesID, ask)
}

// canInject takes in whether the backend's host makes connections for unmodified servers. If it does not, its pools with that delivery go
// without it.
func (b *backend) canInject(m *wire.Unmodified) {
	if m.Unable == "" {
		if b.unable.Swap(nil) != nil {
			b.log.Info("a backend can serve its unmodified servers now", "backend", b.name)
		}
		return
	}
	b.unable.Store(&m.Unable)
	b.log.Warn("a backend cannot serve unmodified servers and gets no connections for them: use delivery linked or fd, or mend its host",
		"backend", b.name, "reason", m.Unable)
}

// makes reports whether a first packet sent there becomes a connection.
func (b *backend) makes() bool {
	return b.cookies.Load() && time.Since(time.Unix(0, b.heard.Load())) < trustTime
}

// fresh reports whether the backend has just been heard of.
func (b *backend) fresh() bool { return time.Since(time.Unix(0, b.heard.Load())) < freshAge }

// begin registers an attempt and queues the connection for flush. An error means that nothing was sent.
func (b *backend) begin(a *attempt, m *wire.Handoff) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.link == nil {
		return migration.ErrPeerLost
	}
	if err := b.link.Queue(a.id, m, -1); err != nil {
		return err
	}
	b.dirty.Store(true)
	b.attempts[a.id] = a
	return nil
}

// flush sends what has been queued.
func (b *backend) flush() {
	if !b.dirty.Load() || !b.dirty.Swap(false) {
		return
	}
	b.mu.Lock()
	link := b.link
	b.mu.Unlock()
	if link != nil {
		link.Flush()
	}
}

// send queues what belongs to an attempt, if there is a link.
func (b *backend) send(id uint64, m wire.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.link != nil {
		_ = b.link.Queue(id, m, -1) // the reader notices a broken link
		b.dirty.Store(true)
	}
}

// attempt returns the attempt of that id, nil when there is none any more.
func (b *backend) attempt(id uint64) *attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.attempts[id]
}

// attemptFor returns the attempt that concerns a flow, nil when there is none.
func (b *backend) attemptFor(f tcprepair.Flow) *attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, a := range b.attempts {
		if a.c.flow == f {
			return a
		}
	}
	return nil
}

func (b *backend) end(id uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.attempts, id)
}

// pending returns the attempts that wait.
func (b *backend) pending() []*attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Collect(maps.Values(b.attempts))
}

// run keeps the connection to the agent until ctx ends.
func (b *backend) run(ctx context.Context) error {
	for ctx.Err() == nil {
		link, err := b.self.Dial(ctx, b.name, b.addr)
		if err != nil {
			b.log.Debug("cannot connect to an agent", "backend", b.name, "error", err)
			wait(ctx, redialAfter)
			continue
		}
		err = b.serve(ctx, link)
		b.log.Info("lost an agent", "backend", b.name, "error", err)
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// serve reads the agent's answers until the link breaks.
func (b *backend) serve(ctx context.Context, link *wire.Link) error {
	stop := context.AfterFunc(ctx, func() { _ = link.Close() })
	defer stop()
	b.hear()
	b.mu.Lock()
	b.link = link
	b.mu.Unlock()
	b.log.Info("connected to an agent", "backend", b.name)
	b.tellCookies()
	b.flush()
	var err error
	for err == nil {
		var f wire.Frame
		if f, _, err = link.Receive(); err == nil {
			b.hear()
			err = b.answer(f)
		}
		if !link.More() {
			b.flushAll() // connections that are tried elsewhere
		}
	}
	b.mu.Lock()
	b.link = nil
	b.mu.Unlock()
	b.cookies.Store(false)
	b.unable.Store(nil)
	_ = link.Close()
	for _, a := range b.pending() {
		a.step(migration.Event{Kind: migration.PeerLost, Err: err})
	}
	b.flushAll()
	return err
}

func (b *backend) hear() {
	b.heard.Store(time.Now().UnixNano())
	b.suspect.Store(false)
}

func (b *backend) answer(f wire.Frame) error {
	a := b.attempt(f.ID)
	var ev migration.Event
	switch m := f.Message.(type) {
	case *wire.Pong:
		return nil
	case *wire.CookiesTaken:
		b.cookies.Store(b.socketless != nil)
		return nil
	case *wire.Unmodified:
		b.canInject(m)
		return nil
	case *wire.Unmade:
		if b.socketless != nil {
			b.socketless.unmade(b, m)
		}
		return nil
	case *wire.Committed:
		ev.Kind = migration.Committed
	case *wire.Refuse:
		if f.ID&shedBit != 0 && b.management != nil {
			b.management.shedder.refused(f.ID)
			return nil
		}
		if f.ID == cookiesID {
			b.cookies.Store(false) // it may go on with what it was told before
			b.log.Warn("a backend's connections need sockets here", "backend", b.name, "reason", m.Reason)
			return nil
		}
		if m.Code == wire.CodeOver {
			ev = migration.Event{Kind: migration.Over, Err: &wire.RefusedError{Who: b.name, Code: m.Code, Reason: m.Reason}}
			break
		}
		ev = migration.Event{Kind: migration.Refused, Err: &wire.RefusedError{Who: b.name, Code: m.Code, Reason: m.Reason}}
	case *wire.Located:
		if ev.Kind = migration.Absent; m.Present {
			ev.Kind = migration.Present
		}
	default:
		return fmt.Errorf("%w: %v as an answer to a dispatcher", wire.ErrMalformed, f.Message.Kind())
	}
	if a != nil {
		a.step(ev)
	}
	return nil
}

// watch keeps deadlines until ctx ends.
func (b *backend) watch(ctx context.Context) error {
	t := time.NewTicker(tickTime)
	defer t.Stop()
	pinged := time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			for _, a := range b.pending() {
				a.tick(now)
			}
			b.flushAll()
			b.mu.Lock()
			link := b.link
			b.mu.Unlock()
			if link == nil {
				continue
			}
			switch silent := now.Sub(time.Unix(0, b.heard.Load())); {
			case silent > deadAfter:
				b.log.Warn("an agent is silent", "backend", b.name)
				_ = link.Close()
			case silent > pingAfter && now.Sub(pinged) > pingAfter:
				pinged = now
				b.send(0, &wire.Ping{})
				b.flush()
			}
		}
	}
}

// errNoBackend means that every backend of the pool is down, drained or has refused.
var errNoBackend = errors.New("no backend takes the connection")
