// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// taker carries out what a migration.Taker decides about a connection that a dispatcher hands to a server of this host. The
// engine owns it.
type taker struct {
	e       *engine
	id      uint64
	machine *migration.Taker
	flow    tcprepair.Flow
	service string
	epoch   uint32
	from    *incoming
	entry   string
	server  delivery

	snapshot []byte
	pending  []migration.Event
	stepping bool
	asked    bool // a Locate waits for the end
	over     bool // the connection has ended, or may have
}

// delivery is one way to give a connection to a server. Its methods do not block.
type delivery interface {
	// prepare does everything that can fail and that the client does not see.
	prepare(s *tcprepair.Snapshot) error
	// deliver makes the connection live and the server's, and then calls done in the engine. After an error nothing is left of
	// it, and it can be tried elsewhere.
	deliver(done func(error))
	// discard undoes prepare.
	discard()
}

// handedOff takes in a connection.
func (e *engine) handedOff(in *incoming, id uint64, m *wire.Handoff) {
	if e.takers[id] != nil {
		return // a doubled frame
	}
	if e.answered.known(id) {
		// The dispatcher has been told that this host does not have it, and believes so.
		in.send(id, &wire.Refuse{Code: wire.CodeNoFlow, Reason: "this host has said that it does not have it"})
		return
	}
	if e.awaitInjector(in, id, m) {
		return
	}
	t := &taker{e: e, id: id, flow: m.Flow, service: m.Service, epoch: m.Epoch, from: in, entry: in.name, snapshot: m.Snapshot}
	if err := t.check(m); err != nil {
		e.counters.refused++
		in.send(id, refusal(err))
		return
	}
	t.machine = migration.NewTaker(migration.TargetParams{Host: e.cfg.Host, Epoch: m.Epoch, Limit: m.Limit}, m.Granted, e.times)
	e.takers[id] = t
	t.step(migration.Event{Kind: migration.Start})
}

func (t *taker) check(m *wire.Handoff) error {
	e := t.e
	svc, ok := e.service(t.service, t.flow)
	switch {
	case e.draining || e.stopping:
		return wire.Refusef(e.cfg.Host, wire.CodeDraining, "")
	case !ok:
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%s at %v is not configured here", t.service, t.flow.Local)
	case svc.Entry != t.from.name:
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "the entry of %s is %s here, not %s", t.service, svc.Entry, t.from.name)
	case len(e.takers) >= e.cfg.Migration.Incoming:
		return wire.Refusef(e.cfg.Host, wire.CodeBusy, "%d connections to this host are under way", len(e.takers))
	case e.peers[t.entry] == nil:
		return wire.Refusef(e.cfg.Host, wire.CodeNoService, "%s is no peer of this host", t.entry)
	}
	if err := e.localAddress(t.flow); err != nil {
		return err
	}
	var err error
	t.server, err = e.delivery(m, svc, t)
	return err
}

// delivery chooses the way to a service's server.
func (e *engine) delivery(m *wire.Handoff, svc ServiceConfig, t *taker) (delivery, error) {
	switch m.Delivery {
	case wire.DeliverLinked:
		app := e.importer(svc.Name)
		if app == nil {
			return nil, wire.Refusef(e.cfg.Host, wire.CodeNoService, "no application here imports %s", svc.Name)
		}
		return &linked{restoring: restoring{e: e}, t: t, app: app}, nil
	case wire.DeliverDescriptor:
		if m.Socket == "" {
			return nil, wire.Refusef(e.cfg.Host, wire.CodeNoService, "no socket is named that takes %s", svc.Name)
		}
		return &descriptor{restoring: restoring{e: e}, flow: t.flow, path: m.Socket, socket: -1}, nil
	case wire.DeliverUnmodified:
		in, err := e.injector()
		if err != nil {
			return nil, wire.Refusef(e.cfg.Host, wire.CodeNoService, "unmodified servers cannot be served: %v", err)
		}
		return &unmodified{e: e, injector: in}, nil
	}
	return nil, wire.Refusef(e.cfg.Host, wire.CodeFailed, "%v is not known here", m.Delivery)
}

func (t *taker) step(ev migration.Event) { t.stepAt(time.Now(), ev) }

// stepAt is source.stepAt's twin.
func (t *taker) stepAt(now time.Time, ev migration.Event) {
	t.pending = append(t.pending, ev)
	if t.stepping {
		return
	}
	t.stepping = true
	for len(t.pending) > 0 {
		next := t.pending[0]
		t.pending = t.pending[1:]
		for _, a := range t.machine.Step(now, next) {
			t.perform(a)
		}
	}
	t.stepping = false
}

func (t *taker) tick(now time.Time) {
	if d := t.machine.Deadline(); !d.IsZero() && !now.Before(d) {
		t.stepAt(now, migration.Event{Kind: migration.Tick})
	}
}

func (t *taker) perform(a migration.Action) {
	switch a.Verb {
	case migration.Restore:
		if err := t.restore(); err != nil {
			t.step(migration.Event{Kind: migration.RestoreFailed, Err: err})
			return
		}
		t.step(migration.Event{Kind: migration.Restored})
	case migration.SendCommit:
		t.e.peers[t.entry].send(t.id, &wire.Commit{Flow: t.flow, Epoch: t.epoch})
	case migration.Deliver:
		t.server.deliver(func(err error) {
			switch {
			case err == nil:
				t.step(migration.Event{Kind: migration.Delivered})
			case errors.Is(err, reqsk.ErrReset), errors.Is(err, reqsk.ErrUncertain):
				t.step(migration.Event{Kind: migration.Over, Err: err})
			default:
				t.step(migration.Event{Kind: migration.DeliveryFailed, Err: err})
			}
		})
	case migration.SendCommitted:
		t.from.send(t.id, &wire.Committed{Epoch: t.epoch + 1})
	case migration.SendRefuse:
		t.from.send(t.id, refusal(a.Err))
	case migration.SendOver:
		t.over = true
		t.e.answered.remember(time.Now(), t.id, true)
		t.from.send(t.id, &wire.Refuse{Code: wire.CodeOver, Reason: a.Err.Error()})
	case migration.Discard:
		t.server.discard()
	case migration.Finish:
		t.finish(a.Err)
	default:
		t.e.log.Error("a taker cannot do this", "verb", a.Verb)
	}
}

// restore prepares the delivery. Nothing has to be held here: the dispatcher holds the flow's packets until the server has it.
func (t *taker) restore() error {
	snap, err := tcprepair.Decode(t.snapshot, tcprepair.Limits{QueueBytes: t.e.cfg.Migration.QueueBytes})
	t.snapshot = nil
	if err != nil {
		return err
	}
	if snap.Flow != t.flow {
		return fmt.Errorf("the snapshot is of %v, handed off was %v", snap.Flow, t.flow)
	}
	if err := t.server.prepare(snap); err != nil {
		t.server.discard()
		return err
	}
	t.e.unstray(t.flow)
	return nil
}

// unstray ends that packets of the client's connection before this one, from the same port, are sent after it to where it moved.
func (e *engine) unstray(f tcprepair.Flow) {
	r, err := e.gate.Route(f)
	if err != nil || r.Node == 0 || r.Entry() {
		return
	}
	if _, err := e.gate.Release(f); err != nil {
		e.log.Error("cannot end that packets are sent on", "flow", f, "error", err)
	}
}

// frame takes in what the dispatcher sends after the connection.
func (t *taker) frame(m wire.Message) {
	if m, ok := m.(*wire.Cancel); ok {
		err := &wire.RefusedError{Who: "dispatcher " + t.from.name, Code: wire.CodeUnspecified, Reason: m.Reason}
		t.step(migration.Event{Kind: migration.Canceled, Err: err})
	}
}

func (t *taker) finish(err error) {
	delete(t.e.takers, t.id)
	if t.asked && !t.over {
		t.from.send(t.id, &wire.Located{Present: err == nil})
	}
	if err == nil {
		t.e.counters.movedIn++
		t.e.metrics.taken.Inc()
		t.e.polled.note(t.flow)
		return
	}
	t.e.counters.refused++
	t.e.log.Warn("did not take a connection from the dispatcher", "flow", t.flow, "from", t.entry, "error", err)
}

// locate answers a dispatcher that was not told what became of a connection.
func (e *engine) locate(in *incoming, id uint64, m *wire.Locate) {
	if t := e.takers[id]; t != nil {
		t.asked, t.from = true, in
		return
	}
	if e.answered.over(id) {
		in.send(id, &wire.Refuse{Code: wire.CodeOver, Reason: "the connection has ended, or may have"})
		return
	}
	found, err := connected(m.Flow, m.Age)
	if err != nil {
		e.log.Error("cannot look for a connection", "flow", m.Flow, "error", err)
		return // it will ask again
	}
	if found == unclear {
		return // unless it hears something better, it ends the connection
	}
	if found == absent {
		// The Handoff itself may still wait to be read, on a connection that the dispatcher has lost.
		e.answered.remember(time.Now(), id, false)
	}
	in.send(id, &wire.Located{Present: found == present})
}

// restoring makes the connection a socket of this process.
type restoring struct {
	e        *engine
	restored *tcprepair.Restored
}

func (r *restoring) prepare(s *tcprepair.Snapshot) (err error) {
	cfg := tcprepair.RestoreConfig{}
	r.restored, err = tcprepair.Restore(s, cfg)
	return err
}

func (r *restoring) discard() {
	if r.restored == nil {
		return
	}
	if err := r.restored.Discard(); err != nil {
		r.e.log.Error("cannot discard a restored connection", "flow", r.restored.Flow(), "error", err)
	}
	r.restored = nil
}

// thaw returns the live socket. When that fails the client has seen nothing, or a window probe.
func (r *restoring) thaw() (int, error) {
	if err := r.restored.Thaw(); err != nil {
		_ = r.restored.Close()
		r.restored = nil
		return -1, err
	}
	fd := r.restored.Disown()
	r.restored = nil
	return fd, nil
}

// linked gives the connection to an application that has registered the service.
type linked struct {
	restoring
	t   *taker
	app *application
}

func (l *linked) deliver(done func(error)) { done(l.give()) }

func (l *linked) give() error {
	if _, ok := l.t.e.apps[l.app]; !ok {
		if l.app = l.t.e.importer(l.t.service); l.app == nil {
			l.discard()
			return wire.Refusef(l.t.e.cfg.Host, wire.CodeNoService, "the application of %s is gone", l.t.service)
		}
	}
	fd, err := l.thaw()
	if err != nil {
		return err
	}
	l.app.sendFD(l.t.id, &wire.Import{Flow: l.t.flow, Epoch: l.t.epoch + 1, Service: l.t.service, Fresh: true}, fd)
	l.app.send(l.t.id, &wire.Activate{})
	return nil
}
