// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
)

const (
	// handshakeTimeout bounds an application's.
	handshakeTimeout = 2 * time.Second
	// A peer that has been silent for pingAfter is asked for a sign of life; silence for deadAfter means it is gone.
	pingAfter = time.Second
	deadAfter = 3 * time.Second
	// redialAfter is the pause between two tries to tell an entry that this host is draining.
	redialAfter = time.Second
	// presencePing is the id of the Ping whose Pong says that a Presence has been read.
	presencePing = 1
)

// outgoing is the connection to another host's agent that this side opens, to make requests: offers to a target,
// leases and commits to an entry. Answers come back on it. It is opened when first needed and then kept. The engine
// owns it.
type outgoing struct {
	e    *engine
	name string
	addr string
	mac  string

	link    *wire.Link
	dialing bool
	// waiting are frames for as soon as the connection stands.
	waiting []wire.Frame
	heard   time.Time
	pinged  bool
	err     error
	// told is true when the peer, an entry, has confirmed whether this host takes connections.
	told   bool
	dialed time.Time
	// retired is set when the configuration has the peer no more, but a move may still use it.
	retired bool
	// closeBy is set while link leads to a former address: when it is closed at the latest.
	closeBy time.Time
}

// peer returns a host that new moves may use; nil when the configuration has none of that name.
func (e *engine) peer(name string) *outgoing {
	if p := e.peers[name]; p != nil && !p.retired {
		return p
	}
	return nil
}

// send sends a request, now or once the connection stands. If it cannot be opened, everybody who uses it is told.
func (p *outgoing) send(id uint64, m wire.Message) {
	if p.link != nil {
		if err := p.e.queue(p.link, id, m, -1); err != nil {
			p.lost(p.link, err)
		}
		return
	}
	p.waiting = append(p.waiting, wire.Frame{ID: id, Message: m})
	p.dial()
}

// dial opens the connection in the background.
func (p *outgoing) dial() {
	if p.dialing || p.link != nil {
		return
	}
	p.dialing, p.dialed = true, time.Now()
	addr := p.addr
	go func() {
		link, err := p.e.self.Dial(context.Background(), p.name, addr)
		p.e.post(func(*engine) {
			p.dialing = false
			switch {
			case p.e.peers[p.name] != p || p.addr != addr:
				p.elsewhere(link)
			case err != nil:
				p.down(fmt.Errorf("connect to %s: %w", p.name, err))
			default:
				p.up(link)
			}
		})
	}()
}

// elsewhere takes in a connection that a reload has overtaken: link is nil when it could not be made.
func (p *outgoing) elsewhere(link *wire.Link) {
	if link != nil {
		go link.Close() //nolint:errcheck // always nil
	}
	if p.e.peers[p.name] == p {
		p.dial()
	}
}

// settle ends a connection to a host that the configuration has no more, or has at another address, once no move uses it.
func (p *outgoing) settle(now time.Time) {
	switch {
	case p.retired:
		if p.inUse() {
			return
		}
		delete(p.e.peers, p.name)
		if p.link != nil {
			p.lost(p.link, errNoPeer)
		}
	case !p.closeBy.IsZero():
		if p.inUse() && now.Before(p.closeBy) {
			return
		}
		p.lost(p.link, errOtherAddress)
		p.dialed = time.Time{}
	}
}

// inUse reports whether a move needs the connection.
func (p *outgoing) inUse() bool {
	for _, s := range p.e.sources {
		if s.target == p.name || s.entry == p.name {
			return true
		}
	}
	for _, t := range p.e.targets {
		if t.entry == p.name {
			return true
		}
	}
	for _, t := range p.e.takers {
		if t.entry == p.name {
			return true
		}
	}
	return p.e.processesUse(p.name)
}

func (p *outgoing) up(link *wire.Link) {
	p.link, p.err, p.heard, p.pinged, p.closeBy = link, nil, time.Now(), false, time.Time{}
	go p.receive(link)
	if p.e.entryFor(p.name) {
		p.tellPresence()
	}
	waiting := p.waiting
	p.waiting = nil
	for _, f := range waiting {
		if p.link != link {
			return // lost meanwhile, and everybody has been told
		}
		p.send(f.ID, f.Message)
	}
}

// tellPresence tells an entry whether this host takes new connections, and asks for a confirmation.
func (p *outgoing) tellPresence() {
	p.told = false
	if p.link == nil {
		p.dial() // up will tell, what is true then
		return
	}
	p.send(0, &wire.Presence{Draining: p.e.draining, Idle: p.e.idleFor(p.name)})
	p.send(presencePing, &wire.Ping{})
}

func (p *outgoing) receive(link *wire.Link) {
	for {
		f, _, err := link.Receive()
		if err != nil {
			p.e.post(func(*engine) { p.lost(link, err) })
			return
		}
		p.e.handle(func(e *engine) {
			if p.link == link {
				p.heard, p.pinged = time.Now(), false
				e.answer(p, f)
			}
		})
	}
}

// lost ends the connection; a new one is opened when it is needed.
func (p *outgoing) lost(link *wire.Link, err error) {
	if p.link != link {
		return
	}
	go link.Close() //nolint:errcheck // always nil
	p.link, p.closeBy = nil, time.Time{}
	p.down(err)
}

// down tells everybody who uses the connection.
func (p *outgoing) down(err error) {
	p.err, p.waiting, p.told = err, nil, false
	for _, s := range slices.Collect(maps.Values(p.e.sources)) {
		if s.target == p.name {
			s.step(migration.Event{Kind: migration.PeerLost, Err: err})
		}
		if s.entry == p.name {
			s.step(migration.Event{Kind: migration.EntryLost, Err: err})
		}
	}
	for _, t := range slices.Collect(maps.Values(p.e.targets)) {
		if t.entry == p.name {
			t.step(migration.Event{Kind: migration.EntryLost, Err: err})
		}
	}
	p.e.processesLost(p.name, err)
}

// tick keeps an eye on a silent peer.
func (p *outgoing) tick(now time.Time) {
	if p.link == nil {
		// An entry remembers a drain until it hears otherwise: so it must hear.
		if p.e.entryFor(p.name) && now.Sub(p.dialed) > redialAfter {
			p.dial()
		}
		return
	}
	last := p.heard
	if sent := p.link.Progress(); sent.After(last) {
		last = sent // it reads: a large State is on its way, with our Ping behind it
	}
	switch silent := now.Sub(last); {
	case silent > deadAfter:
		p.lost(p.link, errors.New("the peer is silent"))
	case silent > pingAfter && !p.pinged:
		p.pinged = true
		_ = p.e.queue(p.link, 0, &wire.Ping{}, -1) // the reader notices a broken link
	}
}

// answer handles a frame that a peer sent in answer to a request.
func (e *engine) answer(p *outgoing, f wire.Frame) {
	if e.answerProcess(p, f) {
		return
	}
	s, t, k := e.sources[f.ID], e.targets[f.ID], e.takers[f.ID]
	fromTarget := s != nil && s.target == p.name
	fromEntry := s != nil && s.entry == p.name
	switch m := f.Message.(type) {
	case *wire.Pong:
		if f.ID == presencePing {
			p.told = true
			for _, op := range slices.Collect(maps.Keys(e.ops)) {
				op.pump()
			}
		}
	case *wire.Accept:
		if fromTarget {
			s.step(migration.Event{Kind: migration.Accepted})
		}
	case *wire.StateStored:
		if fromTarget {
			s.aheadStored()
		}
	case *wire.Refuse:
		if fromTarget {
			s.step(migration.Event{Kind: migration.Refused, Err: &wire.RefusedError{Who: p.name, Code: m.Code, Reason: m.Reason}})
		}
	case *wire.Committed:
		if fromTarget {
			s.step(migration.Event{Kind: migration.Committed})
		}
	case *wire.Leased:
		if fromEntry {
			s.step(migration.Event{Kind: migration.Leased})
		}
	case *wire.LeaseRefused:
		if fromEntry {
			err := &wire.RefusedError{Who: "entry " + p.name, Code: m.Code, Reason: m.Reason}
			s.step(migration.Event{Kind: migration.LeaseRefused, Err: err})
		}
	case *wire.Owner:
		if s != nil && s.target == "" && e.peers[m.Host] != nil {
			s.target = m.Host // of a recovered move: now it is known where to forward
		}
		ev := migration.Event{Kind: migration.OwnerIs, Owner: migration.Owner{Host: m.Host, Epoch: m.Epoch, Unknown: m.Unknown}}
		switch {
		case fromEntry:
			s.step(ev)
		case t != nil && t.entry == p.name:
			t.step(ev)
		case k != nil && k.entry == p.name:
			k.step(ev)
		}
	default:
		p.lost(p.link, fmt.Errorf("%w: %v as an answer", wire.ErrMalformed, f.Message.Kind()))
	}
}
