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

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
)

// application is one program's connection to the agent. Nothing is kept per connection of the program: who asks for its
// connections is answered by the program itself. The engine owns it.
type application struct {
	e    *engine
	name string
	link *wire.Link
	// serial tells it from others of the same name.
	serial   uint64
	services map[string]*wire.Register
	// reported are the services whose state it has told.
	reported map[string]bool
}

// listing collects the answers to a question about connections.
type listing struct {
	waiting  map[*application]bool
	told     map[*application]int // how many connections each has told of
	flows    []located
	deadline time.Time
	silent   int // applications that went away before they had answered
	// done gets what was found, and how many applications did not answer.
	done func(found []located, silent int)
}

// located is a connection and the application that has it.
type located struct {
	status wire.FlowStatus
	app    *application
	// first is its turn among the servers, notBefore the time of its next try.
	first     int
	notBefore time.Time
}

const (
	// listTime bounds the wait for applications that do not answer.
	listTime = 2 * time.Second
	// maxListed is how many connections one application can have, as many as a host's gate has room for by default: about 150 MB.
	maxListed = 1 << 20
	// farewellTime is what a connection that ends has for what was queued.
	farewellTime = time.Second
)

// serveApplications accepts programs until the listener is closed.
func (e *engine) serveApplications(ctx context.Context, ln *net.UnixListener) error {
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			e.log.Warn("cannot accept an application", "error", err)
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		go func() {
			a := &application{e: e, link: wire.NewLink(conn), serial: newID(), services: make(map[string]*wire.Register)}
			if err := a.welcome(ctx); err != nil {
				e.log.Warn("refused an application", "error", err)
				a.link.Drain(time.Second)
				_ = a.link.Close()
				return
			}
			a.receive()
		}()
	}
}

func (a *application) welcome(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = a.link.Close() })
	defer stop()
	f, fd, err := a.link.Receive()
	if err != nil {
		return err
	}
	closeFD(fd)
	h, ok := f.Message.(*wire.Hello)
	if !ok {
		return fmt.Errorf("%w: %v instead of Hello", wire.ErrMalformed, f.Message.Kind())
	}
	// Even a program that speaks no common version learns which ones there are.
	if err := a.link.Send(f.ID, wire.NewHello(a.e.self.Host, peer.Version())); err != nil {
		return err
	}
	a.name = h.Name
	_, err = wire.Negotiate(h)
	return err
}

func (a *application) receive() {
	a.e.post(func(e *engine) { e.apps[a] = struct{}{} })
	for {
		f, fd, err := a.link.Receive()
		if err != nil {
			a.e.post(func(*engine) { a.lost(err) })
			return
		}
		a.e.handle(func(e *engine) {
			if _, ok := e.apps[a]; !ok {
				closeFD(fd)
				return
			}
			a.frame(f, fd)
		})
	}
}

func (a *application) send(id uint64, m wire.Message) { a.sendFD(id, m, -1) }

// sendNow is send for a frame that a client waits for: it does not wait for what else this turn brings.
func (a *application) sendNow(id uint64, m wire.Message) {
	a.send(id, m)
	if _, ok := a.e.apps[a]; ok {
		a.link.Flush()
	}
}

func (a *application) sendFD(id uint64, m wire.Message, fd int) {
	if err := a.e.queue(a.link, id, m, fd); err != nil {
		a.lost(err)
	}
}

// lost ends the connection to a program. The sockets that it had exported stay with their migrations.
func (a *application) lost(err error) {
	if _, ok := a.e.apps[a]; !ok {
		return
	}
	delete(a.e.apps, a)
	go farewell(a.link)
	a.unreport()
	for _, l := range a.e.lists {
		if l.waiting[a] {
			delete(l.waiting, a)
			l.silent++
		}
	}
	a.e.finishLists()
	for _, s := range slices.Collect(maps.Values(a.e.sources)) {
		if s.app == a {
			s.step(migration.Event{Kind: migration.ApplicationLost, Err: err})
		}
	}
	for _, t := range slices.Collect(maps.Values(a.e.targets)) {
		if t.app == a {
			t.step(migration.Event{Kind: migration.ApplicationLost, Err: err})
		}
	}
}

// refuse ends the connection to a program that breaks the protocol, and tells it and the operator why.
func (a *application) refuse(id uint64, err error) {
	a.e.log.Warn("the connection to an application is closed", "application", a.name, "error", err)
	a.sendNow(id, refusal(wire.Refusef("agent", wire.CodeFailed, "%v", err)))
	a.lost(err)
}

func (a *application) preparer(service string) bool {
	r := a.services[service]
	return r != nil && r.Preparer
}

// frame handles what a program sends; it owns fd.
func (a *application) frame(f wire.Frame, fd int) {
	switch m := f.Message.(type) {
	case *wire.Ping:
		a.send(f.ID, &wire.Pong{})
	case *wire.Pong:
		if t := a.e.targets[f.ID]; t != nil && t.app == a {
			t.step(migration.Event{Kind: migration.StateSent})
		}
	case *wire.Register:
		a.register(f.ID, m)
	case *wire.Flows:
		a.flows(f.ID, m)
	case *wire.Load:
		a.load(m)
	case *wire.Recover:
		a.e.recover(a, f.ID, m, fd)
	case *wire.Imported:
		if t := a.e.targets[f.ID]; t != nil && t.app == a {
			t.step(migration.Event{Kind: migration.Imported})
		}
	case *wire.Chunk, *wire.Prepared, *wire.Exported, *wire.Refuse:
		a.answer(f, fd)
	default:
		closeFD(fd)
		a.lost(fmt.Errorf("%w: %v from an application", wire.ErrMalformed, f.Message.Kind()))
	}
}

// answer handles the answers to Prepare, Export and Import.
func (a *application) answer(f wire.Frame, fd int) {
	if s := a.e.sources[f.ID]; s != nil && s.app == a {
		s.frame(f.Message, fd)
		return
	}
	if t := a.e.targets[f.ID]; t != nil && t.app == a {
		closeFD(fd) // of an Exported that nobody asked for
		if m, ok := f.Message.(*wire.Refuse); ok {
			err := &wire.RefusedError{Who: "application", Code: m.Code, Reason: m.Reason}
			t.step(migration.Event{Kind: migration.ImportRefused, Err: err})
		}
		return
	}
	// An export that came too late: the program is told to go on.
	if _, ok := f.Message.(*wire.Exported); ok {
		a.send(f.ID, &wire.Resume{Reason: "the move was given up meanwhile"})
	}
	closeFD(fd)
}

func (a *application) register(id uint64, m *wire.Register) {
	for _, s := range a.e.cfg.Services {
		if s.Name == m.Service {
			a.services[m.Service] = m
			a.send(id, &wire.Registered{Loads: a.e.reporter != nil})
			a.e.served(m.Service)
			return
		}
	}
	err := wire.Refusef("agent", wire.CodeNoService, "%q is not in the agent's configuration: add it to services", m.Service)
	a.send(id, refusal(err))
}

// importer returns a program that can take connections of service over.
func (e *engine) importer(service string) *application {
	for a := range e.apps {
		if r := a.services[service]; r != nil && r.Importer {
			return a
		}
	}
	return nil
}

// list asks every program for its connections, or for one, and calls done with the answers.
func (e *engine) list(only wire.List, done func(found []located, silent int)) {
	id := newID()
	l := &listing{waiting: make(map[*application]bool), told: make(map[*application]int), deadline: time.Now().Add(listTime), done: done}
	for a := range e.apps {
		l.waiting[a] = true
	}
	e.lists[id] = l
	for a := range l.waiting {
		a.send(id, &only)
	}
	e.finishLists()
}

func (a *application) flows(id uint64, m *wire.Flows) {
	l := a.e.lists[id]
	if l == nil || !l.waiting[a] {
		return
	}
	if l.told[a] += len(m.Flows); l.told[a] > maxListed {
		l.flows = slices.DeleteFunc(l.flows, func(f located) bool { return f.app == a })
		a.refuse(id, fmt.Errorf("%w: an answer of more than %d connections", wire.ErrTooLarge, maxListed))
		return
	}
	for _, s := range m.Flows {
		l.flows = append(l.flows, located{status: s, app: a})
	}
	if m.Last {
		delete(l.waiting, a)
		a.e.finishLists()
	}
}

// finishLists hands out the listings that nobody else will add to.
func (e *engine) finishLists() {
	for id, l := range e.lists {
		if len(l.waiting) == 0 {
			delete(e.lists, id)
			l.done(l.flows, l.silent)
		}
	}
}

// farewell closes a link when what was queued has left, or farewellTime has passed.
func farewell(l *wire.Link) {
	l.Drain(farewellTime)
	_ = l.Close()
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
	}
}
