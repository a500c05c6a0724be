// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// SetService makes this gate the entry of a service: a connection to vip goes to one of the nodes, in turn, and stays
// there until Commit. Node 0 is this host. Known flows keep their owners when the list is replaced.
func (g *Gate) SetService(vip netip.AddrPort, nodes []Node) error {
	fail := func(err error) error { return &OpError{Op: "set service " + vip.String(), Err: err} }
	if !vip.IsValid() || vip.Port() == 0 {
		return fail(errors.New("want an address and a port"))
	}
	if len(nodes) > MaxServiceNodes {
		return fail(fmt.Errorf("%d nodes, at most %d", len(nodes), MaxServiceNodes))
	}
	v := gateService{Count: uint32(len(nodes))}
	for i, n := range nodes {
		if n >= MaxNodes {
			return fail(fmt.Errorf("node %d: at most %d", n, MaxNodes-1))
		}
		v.Nodes[i] = uint16(n)
	}
	if err := g.table.objects.Services.Put(serviceKey(vip), v); err != nil {
		return fail(err)
	}
	return nil
}

// RemoveService ends that. Known flows keep their owners; new connections reach this host's own stack.
func (g *Gate) RemoveService(vip netip.AddrPort) error {
	if err := ignoreMissing(g.table.objects.Services.Delete(serviceKey(vip))); err != nil {
		return &OpError{Op: "remove service " + vip.String(), Err: err}
	}
	return nil
}

// Services returns the services that this gate is the entry of, in no order: also those that a former process has set, if the tables
// are pinned.
func (g *Gate) Services() ([]netip.AddrPort, error) {
	var vips []netip.AddrPort
	var k gateServiceKey
	var v gateService
	all := g.table.objects.Services.Iterate()
	for all.Next(&k, &v) {
		vips = append(vips, k.vip())
	}
	if err := all.Err(); err != nil {
		return nil, &OpError{Op: "list services", Err: err}
	}
	return vips, nil
}

// vip is serviceKey's reverse.
func (k gateServiceKey) vip() netip.AddrPort {
	var b []byte
	for _, w := range k.Addr {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	addr := netip.AddrFrom16([16]byte(b))
	if k.Family == 4 {
		addr = netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrPortFrom(addr, networkOrder(k.Port))
}

func serviceKey(vip netip.AddrPort) gateServiceKey {
	a := vip.Addr().Unmap()
	k := gateServiceKey{Port: networkOrder(vip.Port()), Proto: protoTCP, Family: 6}
	if a.Is4() {
		k.Family = 4
		k.Addr[0] = word4(a)
		return k
	}
	k.Addr = words6(a)
	return k
}

// Change asks an entry for a new owner.
type Change struct {
	Flow  tcprepair.Flow
	From  uint32 // the epoch it must still have; it becomes From+1
	Owner Node
}

// Changed answers a Change.
type Changed struct {
	Route RouteInfo // what holds now, whoever decided it
	Err   error
}

// Commit gives the flow to a new owner if nobody else has done so: its epoch must be from, and becomes from+1. The same
// write switches the path of its packets. Otherwise the error is ErrEpoch and the RouteInfo tells what holds; ErrNoFlow
// when this gate is not the flow's entry (or has lost its table: see Adopt).
func (g *Gate) Commit(f tcprepair.Flow, from uint32, owner Node) (RouteInfo, error) {
	r := g.CommitAll(Change{Flow: f, From: from, Owner: owner})
	return r[0].Route, r[0].Err
}

// CommitAll is Commit for many flows. Each stands for itself: some may fail.
func (g *Gate) CommitAll(changes ...Change) []Changed {
	ops := make([]gateOperation, len(changes))
	answers := make([]Changed, len(changes))
	for i, c := range changes {
		ops[i] = newOperation(gateCodeOP_COMMIT, c.Flow)
		ops[i].Epoch, ops[i].Node = c.From, uint16(c.Owner)
	}
	err := g.table.run(ops)
	for i := range ops {
		answers[i] = decided("commit", changes[i].Flow, &ops[i], err)
	}
	return answers
}

// Adopt makes this gate the entry of a flow it knows no owner of, for an entry that has lost its table. ErrExists when
// there is an owner; the RouteInfo then tells which.
func (g *Gate) Adopt(f tcprepair.Flow, epoch uint32, owner Node) (RouteInfo, error) {
	if epoch == 0 {
		return RouteInfo{}, &OpError{Op: "adopt", Flow: f, Err: errors.New("epochs begin at 1")}
	}
	ops := []gateOperation{newOperation(gateCodeOP_ADOPT, f)}
	ops[0].Epoch, ops[0].Node = epoch, uint16(owner)
	a := decided("adopt", f, &ops[0], g.table.run(ops))
	return a.Route, a.Err
}

// Route tells what the gate knows of the flow; ErrNoFlow when nothing.
func (g *Gate) Route(f tcprepair.Flow) (RouteInfo, error) {
	ops := []gateOperation{newOperation(gateCodeOP_QUERY, f)}
	a := decided("route", f, &ops[0], g.table.run(ops))
	return a.Route, a.Err
}

func decided(op string, f tcprepair.Flow, o *gateOperation, err error) Changed {
	if err == nil {
		err = answer(o)
	}
	if err == nil {
		return Changed{Route: routeInfo(o)}
	}
	c := Changed{Err: &OpError{Op: op, Flow: f, Err: err}}
	if errors.Is(err, ErrEpoch) || errors.Is(err, ErrExists) {
		c.Route = routeInfo(o)
	}
	return c
}

// Forget removes what the gate knows of flows, because their connections have ended. Unknown flows are no error.
func (g *Gate) Forget(flows ...tcprepair.Flow) error {
	if err := g.enter(flows...); err != nil {
		return &OpError{Op: "forget", Err: err}
	}
	defer g.mu.Unlock()
	ops := make([]gateOperation, len(flows))
	for i, f := range flows {
		ops[i] = newOperation(gateCodeOP_FORGET, f)
		g.leave(f)
	}
	if err := g.table.run(ops); err != nil {
		return &OpError{Op: "forget", Err: err}
	}
	for i := range ops {
		if err := answer(&ops[i]); err != nil && !errors.Is(err, ErrNoFlow) {
			return &OpError{Op: "forget", Flow: flows[i], Err: err}
		}
	}
	return nil
}

// Stats returns the counters. A gate whose tables cannot be read any more returns those of its process.
func (g *Gate) Stats() Stats {
	var each []gateCounters
	_ = g.table.objects.Stats.Lookup(uint32(0), &each)
	var s Stats
	for _, c := range each {
		s.Held += c.Held
		s.Suppressed += c.Suppressed
		s.Forwarded += c.Forwarded
		s.Assigned += c.Assigned
		s.NoTap += c.NoTap
		s.NoNode += c.NoNode
		s.Loop += c.Loop
		s.Full += c.Full
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	s.Overflow, s.Lapsed = g.overflow, g.lapsed
	s.Crowded, s.Kept = g.room.crowded, uint64(g.room.used)
	s.Flows, s.Holds = uint64(g.swept.Live), uint64(g.swept.Holds)
	return s
}

// handshakeTimeout outlasts every retransmission of a SYN (tcp_syn_retries 6: 127 s).
const handshakeTimeout = 130 * time.Second
