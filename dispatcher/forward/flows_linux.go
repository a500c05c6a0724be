// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Flows are the flows and services of one transport protocol. A Forwarder is those of TCP; Forwarder.UDP returns the
// others. The methods are safe for concurrent use.
type Flows struct {
	table   *table
	proto   uint8
	diverts bool // there is a tap
}

// Commit gives the flow to a new owner if nobody else has done so: its epoch must be from, and becomes from+1. The same
// write switches the path of its packets. Otherwise the error is gate.ErrEpoch and the RouteInfo tells what holds;
// gate.ErrNoFlow when the flow is unknown (or the table was lost: see Adopt).
func (s *Flows) Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	r := s.CommitAll(gate.Change{Flow: f, From: from, Owner: owner})
	return r[0].Route, r[0].Err
}

// CommitAll is Commit for many flows. Each stands for itself: some may fail.
func (s *Flows) CommitAll(changes ...gate.Change) []gate.Changed { return s.change(false, changes) }

// Take is CommitAll, and for flows that have no owner, whose From is 0, Adopt with epoch 1.
func (s *Flows) Take(changes ...gate.Change) []gate.Changed { return s.change(true, changes) }

func (s *Flows) change(adopt bool, changes []gate.Change) []gate.Changed {
	ops := make([]operation, len(changes))
	for i, c := range changes {
		ops[i] = s.operation(forwardCodeOP_COMMIT, c.Flow)
		ops[i].epoch, ops[i].node = c.From, c.Owner
		if adopt && c.From == 0 {
			ops[i].code, ops[i].epoch = forwardCodeOP_ADOPT, 1
		}
	}
	err := s.run(ops)
	answers := make([]gate.Changed, len(changes))
	for i := range ops {
		answers[i] = decided("commit", &ops[i], err)
	}
	return answers
}

// Grant is Commit for a node that does not have the connection yet: the flow is the node's, and its packets go on to be this host's to hold,
// until Settle, or for eight seconds.
func (s *Flows) Grant(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	ops := []operation{s.operation(forwardCodeOP_GRANT, f)}
	ops[0].epoch, ops[0].node = from, owner
	a := decided("grant", &ops[0], s.run(ops))
	return a.Route, a.Err
}

// Settle switches the path of a flow that was granted: epoch is the one that Grant has given it, owner the node. gate.ErrEpoch when
// the flow is another's; the RouteInfo then tells whose.
func (s *Flows) Settle(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	ops := []operation{s.operation(forwardCodeOP_SETTLE, f)}
	ops[0].epoch, ops[0].node = epoch, owner
	a := decided("settle", &ops[0], s.run(ops))
	return a.Route, a.Err
}

// Adopt records an owner for a flow that has none, for a table that was lost or a flow that began elsewhere.
// gate.ErrExists when there is an owner; the RouteInfo then tells which.
func (s *Flows) Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	if epoch == 0 {
		return gate.RouteInfo{}, &OpError{Op: "adopt", Flow: f, Err: errors.New("epochs begin at 1")}
	}
	ops := []operation{s.operation(forwardCodeOP_ADOPT, f)}
	ops[0].epoch, ops[0].node = epoch, owner
	a := decided("adopt", &ops[0], s.run(ops))
	return a.Route, a.Err
}

// Assign decides about a flow whose first datagrams were diverted: it is owner's from now on, with epoch 2, and its later packets
// still come by user space until Send has sent on the last that did. inspect makes it signalling, whose packets always do.
// gate.ErrExists when it was decided before (or needs no decision); the RouteInfo then tells how. gate.ErrNoFlow when it is over.
func (s *Flows) Assign(f tcprepair.Flow, owner gate.Node, inspect bool) (gate.RouteInfo, error) {
	ops := []operation{s.operation(forwardCodeOP_ASSIGN, f)}
	ops[0].node = owner
	if inspect {
		ops[0].epoch = routeInspect
	}
	a := decided("assign", &ops[0], s.run(ops))
	return a.Route, a.Err
}

// Inspect has the packets of a flow come by user space from now on, or no longer. Of a flow of this host's own (node 0) that
// begins when it is committed to another node. Of TCP, acknowledgements without payload do not come.
func (s *Flows) Inspect(f tcprepair.Flow, on bool) error {
	ops := []operation{s.operation(forwardCodeOP_INSPECT, f)}
	if on {
		ops[0].epoch = routeInspect
	}
	return decided("inspect", &ops[0], s.run(ops)).Err
}

// Route tells what is known of the flow; gate.ErrNoFlow when nothing. Forwarded counts modulo 2^32.
func (s *Flows) Route(f tcprepair.Flow) (gate.RouteInfo, error) {
	ops := []operation{s.operation(forwardCodeOP_QUERY, f)}
	a := decided("route", &ops[0], s.run(ops))
	return a.Route, a.Err
}

// Forget removes flows, because their connections have ended. Unknown ones are no error.
func (s *Flows) Forget(flows ...tcprepair.Flow) error {
	ops := make([]operation, len(flows))
	for i, f := range flows {
		ops[i] = s.operation(forwardCodeOP_FORGET, f)
	}
	if err := s.run(ops); err != nil {
		return &OpError{Op: "forget", Err: err}
	}
	for i := range ops {
		if err := ops[i].err(); err != nil && !errors.Is(err, gate.ErrNoFlow) {
			return &OpError{Op: "forget", Flow: flows[i], Err: err}
		}
	}
	return nil
}

func (s *Flows) operation(code forwardCode, f tcprepair.Flow) operation {
	return operation{code: code, proto: s.proto, flow: f}
}

// run carries out the operations that make sense; the others have the reason in them.
func (s *Flows) run(ops []operation) error {
	sound := make([]operation, 0, len(ops))
	for i := range ops {
		if ops[i].check() == nil {
			sound = append(sound, ops[i])
		}
	}
	err := s.table.run(sound)
	for i := range ops {
		if ops[i].check() == nil {
			ops[i], sound = sound[0], sound[1:]
		}
	}
	return err
}

func decided(op string, o *operation, err error) gate.Changed {
	if err == nil {
		err = o.err()
	}
	if err == nil {
		return gate.Changed{Route: o.info()}
	}
	c := gate.Changed{Err: &OpError{Op: op, Flow: o.flow, Err: err}}
	if errors.Is(err, gate.ErrEpoch) { // ErrExists is one, too
		c.Route = o.info()
	}
	return c
}
