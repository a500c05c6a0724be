// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

const (
	// holdMargin is how much longer the gate holds a flow than an attempt to hand it off may take.
	holdMargin = time.Second
	// divertTime is how long the gate sends on what passes by the flow table just before that knows the server.
	divertTime = time.Second
	// graceTime is how long a backend that was granted a flow may leave open whether it has the connection.
	graceTime = 3 * time.Second
	// grantTime is how long an attempt may take at most for its backend to be granted the flow at once: the packet path sends the packets of
	// a granted flow there after eight seconds, whoever has the connection (package forward), and graceTime is to pass before.
	grantTime = 4 * time.Second
)

// dispatched is a connection whose first request is known: it is handed to one backend after the other until one has it.
type dispatched struct {
	d        *Dispatcher
	fd       int
	service  *service
	flow     tcprepair.Flow
	pool     *pool
	visit    balance.Visit
	accepted time.Time
	// answer makes what the client is told when nobody takes the connection.
	answer func(peek.Status) []byte

	mu        sync.Mutex
	tried     []*member
	epoch     uint32
	snapshot  []byte // of the frozen socket, nil before the freeze
	watermark tcprepair.Watermark
	attempt   *attempt
}

// attempt is one try to hand a connection to one backend. It carries out what a migration.Giver decides, under its connection's mutex.
type attempt struct {
	c      *dispatched
	id     uint64
	to     *member
	giver  *migration.Giver
	epoch  uint32 // of the flow, before it is granted
	atOnce bool
	begun  time.Time
	// untracked is why the table does not lead to the backend although it has the connection.
	untracked error
	events    []migration.Event
	busy      bool
}

// start hands the connection off, or refuses it.
func (c *dispatched) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next(errNoBackend)
}

// next tries the next backend. cause is why the last one did not take the connection.
func (c *dispatched) next(cause error) {
	to := c.pool.member(time.Now(), c.visit, c.tried)
	if to == nil {
		c.giveUp(cause)
		return
	}
	c.tried = append(c.tried, to)
	if err := c.freeze(); err != nil {
		c.giveUp(err)
		return
	}
	atOnce := to.host.fresh() && c.pool.cfg.HandoffTime <= grantTime
	a := &attempt{
		c: c, id: newID(), to: to, epoch: c.epoch, atOnce: atOnce, begun: time.Now(),
		giver: migration.NewGiver(c.pool.cfg.HandoffTime, graceTime, atOnce),
	}
	c.attempt = a
	a.stepLocked(migration.Event{Kind: migration.Start})
}

func newID() uint64 {
	for {
		if id := rand.Uint64() &^ shedBit; id != 0 {
			return id
		}
	}
}

// freeze holds the flow for another attempt and, the first time, freezes the socket and reads it.
func (c *dispatched) freeze() error {
	ttl := c.pool.cfg.HandoffTime + graceTime + holdMargin
	if err := c.d.gate.Hold(c.flow, gate.Ingress|gate.Egress, ttl); err != nil {
		return fmt.Errorf("hold packets: %w", err)
	}
	if c.snapshot != nil {
		return nil
	}
	snap, err := c.take()
	if errors.Is(err, tcprepair.ErrUnstable) { // what nftables let through to the socket comes too fast
		if err = c.d.gate.Hold(c.flow, gate.Ingress, ttl); err == nil {
			snap, err = c.take()
		}
	}
	if err != nil {
		return err
	}
	if c.snapshot, err = snap.AppendBinary(nil); err != nil {
		return errors.Join(err, tcprepair.Resume(c.fd))
	}
	c.watermark = snap.Watermark()
	return nil
}

// reuser is a packet path that does not notice by itself that a client uses its port again.
type reuser interface {
	// Reused drops what is left of the connection before, if that can be there.
	Reused(f tcprepair.Flow) bool
}

// reused reports whether another's flow was only the connection before this one, which has been accepted here.
func (d *Dispatcher) reused(f tcprepair.Flow) bool {
	path, ok := d.path.(reuser)
	return ok && path.Reused(f)
}

func (c *dispatched) take() (*tcprepair.Snapshot, error) {
	r, err := c.d.path.Route(c.flow)
	switch {
	case err == nil && r.Entry() && r.Node == 0:
		c.epoch = r.Epoch
	case err == nil && r.Entry() && !c.d.reused(c.flow):
		return nil, fmt.Errorf("%w: the flow is node %d's", migration.ErrGone, r.Node)
	default: // the table has lost it, or never saw its first packet
		if _, err := c.d.path.Adopt(c.flow, 1, 0); err != nil {
			return nil, fmt.Errorf("flow table: %w", err)
		}
		c.epoch = 1
	}
	outline, err := c.d.outlines.of(c.fd, c.flow)
	if err != nil {
		return nil, err
	}
	snap, err := outline.FreezeTake(c.fd, tcprepair.Limits{}, 0)
	if err == nil {
		if info, err := unix.GetsockoptTCPInfo(c.fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			c.d.count.relayed.Add(float64(info.Bytes_sent))
		}
	}
	return snap, err
}

// step takes in what has happened to the attempt.
func (a *attempt) step(ev migration.Event) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	a.stepLocked(ev)
}

func (a *attempt) stepLocked(ev migration.Event) {
	a.events = append(a.events, ev)
	if a.busy {
		return
	}
	a.busy = true
	for len(a.events) > 0 {
		next := a.events[0]
		a.events = a.events[1:]
		for _, action := range a.giver.Step(time.Now(), next) {
			a.perform(action)
		}
	}
	a.busy = false
}

func (a *attempt) tick(now time.Time) {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	if d := a.giver.Deadline(); !d.IsZero() && !now.Before(d) {
		if s := a.giver.State(); s == migration.GiverSent || s == migration.GiverGranted {
			a.to.host.suspect.Store(true)
		}
		a.stepLocked(migration.Event{Kind: migration.Tick})
	}
}

func (a *attempt) perform(action migration.Action) {
	c := a.c
	switch action.Verb {
	case migration.SendHandoff:
		a.to.host.active.Add(1)
		err := a.to.host.begin(a, &wire.Handoff{
			Flow: c.flow, Service: c.pool.cfg.Service, Delivery: c.pool.delivery, Epoch: a.epoch, Limit: c.pool.cfg.HandoffTime,
			Snapshot: c.snapshot, Socket: a.to.socket, Granted: a.atOnce,
		})
		if err != nil { // nothing was sent
			a.stepLocked(migration.Event{Kind: migration.Refused, Err: fmt.Errorf("%w: %w", migration.ErrPeerLost, err)})
		}
	case migration.SendCancel:
		a.to.host.send(a.id, &wire.Cancel{Reason: "it took too long"})
	case migration.Grant:
		a.grant()
	case migration.Deny:
		// The answer to Commit says who the owner is.
	case migration.TakeBack:
		a.takeBack()
	case migration.AskServer:
		a.to.host.send(a.id, &wire.Locate{Flow: c.flow, Age: time.Since(a.begun)})
	case migration.Discard:
		a.discard()
	case migration.Reset:
		// The hold would swallow the RST.
		if err := c.d.gate.Unhold(c.flow); err != nil && !errors.Is(err, gate.ErrNoFlow) {
			c.d.log.Error("cannot end the hold of a connection that is over", "flow", c.flow, "error", err)
		}
		if err := tcprepair.Reset(c.fd); err != nil {
			c.d.log.Error("cannot reset a connection", "flow", c.flow, "error", err)
		}
	case migration.Finish:
		a.finish(action.Err)
	default:
		c.d.log.Error("a giver cannot do this", "verb", action.Verb)
	}
}

// grant makes the backend the flow's owner. The client's packets stay here until it has the connection (discard); if this process dies before
// that, they go there all the same.
func (a *attempt) grant() {
	c := a.c
	r, err := c.d.path.Grant(c.flow, a.epoch, a.to.host.node)
	if err == nil || errors.Is(err, gate.ErrEpoch) && r.Epoch == a.epoch+1 && r.Node == a.to.host.node {
		a.stepLocked(migration.Event{Kind: migration.CommitMade})
		return
	}
	a.stepLocked(migration.Event{Kind: migration.CommitFailed, Err: err})
}

// takeBack makes the flow this host's again.
func (a *attempt) takeBack() {
	c := a.c
	r, err := c.d.path.Commit(c.flow, a.epoch+1, 0)
	if err != nil {
		a.untracked = fmt.Errorf("the flow cannot be taken back: %w", err)
		return
	}
	c.epoch = r.Epoch
}

// granted reports whether the flow is the backend's, as far as this attempt decides it.
func (a *attempt) granted() bool {
	a.c.mu.Lock()
	defer a.c.mu.Unlock()
	switch a.giver.State() {
	case migration.GiverGranted, migration.GiverAsking, migration.GiverGiven:
		return true
	}
	return false
}

// discard makes the backend the owner in the flow table, sends it what was held, and ends the dispatcher's socket, which nobody needs any
// more.
func (a *attempt) discard() {
	c := a.c
	missed, err := c.watermark.Missed(c.fd)
	if err != nil {
		c.d.log.Warn("the client will have to send again what came last", "flow", c.flow, "error", err)
	}
	// The gate leads there before the flow table does, so that what the client sends now does not overtake what it has sent before.
	err = c.d.gate.Divert(c.flow, a.to.host.node, divertTime, gate.Frames(missed)...)
	if err != nil && !errors.Is(err, gate.ErrNoFlow) {
		c.d.log.Error("cannot send held packets on", "flow", c.flow, "error", err)
	}
	// Before Settle: with nftables that lets this host speak again, and the socket may have more to acknowledge than was sent on.
	if err := tcprepair.Discard(c.fd); err != nil {
		c.d.log.Error("cannot discard a connection that was handed off", "flow", c.flow, "error", err)
	}
	if _, err := c.d.path.Settle(c.flow, a.epoch+1, a.to.host.node); err != nil {
		// The client has opened a new connection from the same port, or the table is lost: what the server has will time out.
		a.untracked = fmt.Errorf("the flow has changed its owner meanwhile: %w", err)
	}
}

func (a *attempt) finish(err error) {
	c, d := a.c, a.c.d
	a.to.host.end(a.id)
	switch state := a.giver.State(); {
	case state == migration.GiverGiven && a.untracked != nil:
		_ = unix.Close(c.fd)
		lower(c.service.active)
		lower(&a.to.host.active)
		d.count.failed("lost")
		d.log.Warn("a connection was lost in its handoff", "flow", c.flow, "backend", a.to.name, "error", a.untracked)
	case state == migration.GiverGiven:
		_ = unix.Close(c.fd)
		d.count.handedOff(c.pool.delivery, time.Since(c.accepted))
	case state == migration.GiverLost:
		a.drop(err)
	case a.untracked != nil: // another connection of the client's has its place: no other server may have this one
		a.drop(a.untracked)
	default:
		lower(&a.to.host.active)
		d.count.failed("refused")
		d.log.Debug("a backend did not take a connection", "flow", c.flow, "backend", a.to.name, "error", err)
		c.next(err)
	}
}

// drop ends what is left of a connection here, silently, and what the table has of it if that is still its own.
func (a *attempt) drop(err error) {
	c, d := a.c, a.c.d
	lower(&a.to.host.active)
	lower(c.service.active)
	d.count.failed("lost")
	d.log.Warn("a connection was lost in its handoff", "flow", c.flow, "backend", a.to.name, "error", err)
	_ = d.gate.Unhold(c.flow)
	r, routeErr := d.path.Route(c.flow)
	if routeErr == nil && (r.Node == 0 && r.Epoch == a.epoch || r.Node == a.to.host.node && r.Epoch == a.epoch+1) {
		c.service.ended(c.flow)
	}
	_ = tcprepair.Discard(c.fd)
	_ = unix.Close(c.fd)
}

// giveUp tells the client that nobody serves it: the connection is the dispatcher's.
func (c *dispatched) giveUp(cause error) {
	lower(c.service.active)
	if errors.Is(cause, tcprepair.ErrState) { // the client has reset it: nobody's failure, and nothing that clients should fill a log with
		c.d.count.left.Inc()
		c.d.log.Debug("a client has gone away", "flow", c.flow, "error", cause)
	} else {
		c.d.count.failed("unserved")
		c.d.log.Warn("no backend takes a connection", "flow", c.flow, "pool", c.pool.cfg.Name, "error", cause)
	}
	if c.snapshot != nil {
		if err := tcprepair.Resume(c.fd); err != nil {
			c.d.log.Error("cannot thaw a connection", "flow", c.flow, "error", err)
		}
	}
	if _, err := c.d.gate.Release(c.flow); err != nil && !errors.Is(err, gate.ErrNoFlow) {
		c.d.log.Error("cannot release held packets", "flow", c.flow, "error", err)
	}
	c.d.refuse(c, c.answer(peek.Unavailable))
}
