// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// sweepInterval is how often entries are removed whose ports are used again.
const sweepInterval = 5 * time.Second

// Forwarder sends handed-over connections on. Its methods are safe for concurrent use.
type Forwarder struct {
	config Config
	rules  *ruleset

	mu     sync.Mutex
	conn   *nftables.Conn
	ledger ledger
	chains map[gate.Node]bool // chains that exist
	closed bool
}

// Open makes the table, or takes it over, in the network namespace of the calling thread. ErrPermission without CAP_NET_ADMIN;
// ErrUnsupported where the kernel has no nftables for netdev.
func Open(config Config) (_ *Forwarder, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() {
		if err != nil {
			err = &OpError{Op: "open", Err: explain(err)}
		}
	}()
	if err := config.validate(); err != nil {
		return nil, err
	}
	config = config.withDefaults()
	f := &Forwarder{config: config, rules: newRuleset(config.Table), ledger: newLedger(), chains: make(map[gate.Node]bool)}
	if f.conn, err = nftables.New(nftables.AsLasting()); err != nil {
		return nil, err
	}
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.conn.CloseLasting())
	}
	return f, nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w: needs CONFIG_NF_TABLES_NETDEV and CONFIG_NFT_DUP_NETDEV: %w", ErrUnsupported, err)
	}
	return err
}

func (f *Forwarder) open() error {
	for _, name := range f.config.Interfaces {
		if _, err := net.InterfaceByName(name); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	// All of it is one transaction; what is there already stays as it is.
	f.conn.AddTable(f.rules.table)
	for i := range f.rules.versions {
		for _, s := range []*nftables.Set{f.rules.versions[i].fresh, f.rules.versions[i].flows} {
			if err := f.conn.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	if err := f.flush(); err != nil {
		return fmt.Errorf("make the table: %w", err)
	}
	if err := f.load(); err != nil {
		return err
	}
	for _, name := range f.config.Interfaces {
		c := f.conn.AddChain(f.rules.hook(name))
		f.conn.FlushChain(c)
		for _, r := range f.rules.hookRules() {
			f.conn.AddRule(&nftables.Rule{Table: f.rules.table, Chain: c, Exprs: r})
		}
	}
	if err := f.flush(); err != nil {
		return fmt.Errorf("make the chains: %w", err)
	}
	return nil
}

// load learns what a former process has left.
func (f *Forwarder) load() error {
	for i := range f.rules.versions {
		elements, err := f.conn.GetSetElements(f.rules.versions[i].flows)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.rules.versions[i].flows.Name, err)
		}
		for _, e := range elements {
			flow, err := decodeKey(e.Key)
			r, too := decodeOwner(e.Comment)
			if err := errors.Join(err, too); err != nil {
				return fmt.Errorf("table %s, %s: %w", f.config.Table, f.rules.versions[i].flows.Name, err)
			}
			f.ledger.flows[flow] = r
			f.chains[r.Node] = true
		}
	}
	chains, err := f.conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return fmt.Errorf("list the chains: %w", err)
	}
	wanted := make(map[string]bool)
	for _, name := range f.config.Interfaces {
		wanted[hookName(name)] = true
	}
	for _, c := range chains {
		if c.Table.Name != f.config.Table {
			continue
		}
		if n := nodeOf(c.Name); n != 0 {
			f.chains[n] = true
		}
		if isHook(c.Name) && !wanted[c.Name] {
			c.Table = f.rules.table
			f.conn.FlushChain(c)
			f.conn.DelChain(c)
		}
	}
	return nil
}

// flush carries the transaction out. It is called with the lock held.
func (f *Forwarder) flush() error { return f.conn.Flush() }

// SetNode says how a node is reached: frames leave by the interface, from MAC src to MAC dst.
func (f *Forwarder) SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error {
	fail := func(err error) error { return &OpError{Op: "set node", Err: fmt.Errorf("node %d: %w", n, err)} }
	if n == 0 || n >= MaxNodes {
		return fail(fmt.Errorf("want 1 to %d (0 is this host)", MaxNodes-1))
	}
	if ifindex <= 0 || len(dst) != 6 || len(src) != 6 {
		return fail(errors.New("want an interface and two Ethernet addresses"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fail(ErrClosed)
	}
	c := f.conn.AddChain(f.rules.node(chainName(n)))
	f.conn.FlushChain(c)
	f.conn.AddRule(&nftables.Rule{Table: f.rules.table, Chain: c, Exprs: nodeRule(ifindex, dst, src)})
	if err := f.flush(); err != nil {
		return fail(err)
	}
	f.chains[n] = true
	return nil
}

// SetService says that new connections to vip are this host's (nodes is node 0 alone). Anything else is ErrUnsupported.
func (f *Forwarder) SetService(vip netip.AddrPort, nodes []gate.Node) error {
	if len(nodes) != 1 || nodes[0] != 0 {
		return &OpError{Op: "set service " + vip.String(), Err: Check(Needs{Nodes: true})}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ledger.services[vip] = true
	return nil
}

// RemoveService ends that. Known flows keep their owners.
func (f *Forwarder) RemoveService(vip netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ledger.services, vip)
	return nil
}

// Route tells who owns the flow; gate.ErrNoFlow if nothing is known of it and its service.
func (f *Forwarder) Route(flow tcprepair.Flow) (gate.RouteInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, _, err := f.ledger.find(flow)
	if err != nil {
		return r, &OpError{Op: "route", Flow: flow, Err: err}
	}
	return r, nil
}

// Commit gives the flow to a new owner if its epoch is from, which becomes from+1. Otherwise the error is gate.ErrEpoch, and the RouteInfo
// tells what holds.
func (f *Forwarder) Commit(flow tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	return f.decide("commit", flow, owner, func() (gate.RouteInfo, error) { return f.ledger.commit(flow, from, owner) })
}

// CommitAll is Commit for many flows. Each stands for itself: some may fail.
func (f *Forwarder) CommitAll(changes ...gate.Change) []gate.Changed {
	answers := make([]gate.Changed, len(changes))
	for i, c := range changes {
		answers[i].Route, answers[i].Err = f.Commit(c.Flow, c.From, c.Owner)
	}
	return answers
}

// Adopt records an owner for a flow that has none; gate.ErrExists when there is one, and the RouteInfo then tells which.
func (f *Forwarder) Adopt(flow tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	if epoch == 0 {
		return gate.RouteInfo{}, &OpError{Op: "adopt", Flow: flow, Err: errors.New("epochs begin at 1")}
	}
	return f.decide("adopt", flow, owner, func() (gate.RouteInfo, error) { return f.ledger.adopt(flow, epoch, owner) })
}

func (f *Forwarder) decide(op string, flow tcprepair.Flow, owner gate.Node, ask func() (gate.RouteInfo, error)) (gate.RouteInfo, error) {
	fail := func(r gate.RouteInfo, err error) (gate.RouteInfo, error) {
		return r, &OpError{Op: op, Flow: flow, Err: err}
	}
	if !flow.IsValid() || owner >= MaxNodes {
		return fail(gate.RouteInfo{}, fmt.Errorf("flow %v to node %d: want a flow, and a node below %d", flow, owner, MaxNodes))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fail(gate.RouteInfo{}, ErrClosed)
	}
	r, err := ask()
	if errors.Is(err, gate.ErrEpoch) {
		// Its ports may have been used again since.
		if err := f.sweep(); err != nil {
			return fail(r, err)
		}
		r, err = ask()
	}
	if err != nil {
		return fail(r, err)
	}
	if err := f.write(flow, r); err != nil {
		return fail(gate.RouteInfo{}, err)
	}
	f.ledger.flows[flow] = r
	return r, nil
}

// write changes the path of a flow in one transaction.
func (f *Forwarder) write(flow tcprepair.Flow, r gate.RouteInfo) error {
	v := f.rules.of(flow.Local.Addr().Is4())
	key := encodeKey(flow)
	if r.Node != 0 && !f.chains[r.Node] {
		// A node that nobody knows the way to yet: its packets must not reach this host's stack, which would answer RST.
		c := f.conn.AddChain(f.rules.node(chainName(r.Node)))
		f.conn.AddRule(&nftables.Rule{Table: f.rules.table, Chain: c, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	}
	var errs []error
	if old, ok := f.ledger.flows[flow]; ok && old.Node != 0 {
		errs = append(errs, f.conn.SetDeleteElements(v.flows, []nftables.SetElement{{Key: key}}))
	}
	if r.Node != 0 {
		errs = append(errs,
			f.conn.SetAddElements(v.flows, []nftables.SetElement{{
				Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chainName(r.Node)}, Comment: encodeOwner(r),
			}}),
			// It may have lapsed: what is added can be deleted.
			f.conn.SetAddElements(v.fresh, []nftables.SetElement{{Key: key}}),
			f.conn.SetDeleteElements(v.fresh, []nftables.SetElement{{Key: key}}),
		)
	}
	if err := errors.Join(append(errs, f.flush())...); err != nil {
		return fmt.Errorf("change the table: %w", err)
	}
	if r.Node != 0 {
		f.chains[r.Node] = true
	}
	return nil
}

// Forget removes flows, because their connections have ended. Unknown ones are no error.
func (f *Forwarder) Forget(flows ...tcprepair.Flow) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return &OpError{Op: "forget", Err: ErrClosed}
	}
	if err := f.remove(f.ledger.begun(flows)); err != nil {
		return &OpError{Op: "forget", Err: err}
	}
	return nil
}

// remove takes elements out of the kernel's maps.
func (f *Forwarder) remove(flows []tcprepair.Flow) error {
	if len(flows) == 0 {
		return nil
	}
	for _, flow := range flows {
		v := f.rules.of(flow.Local.Addr().Is4())
		if err := f.conn.SetDeleteElements(v.flows, []nftables.SetElement{{Key: encodeKey(flow)}}); err != nil {
			return err
		}
	}
	if err := f.flush(); err != nil {
		return fmt.Errorf("change the table: %w", err)
	}
	return nil
}

// sweep removes entries of connections whose ports have been used again. It is called with the lock held.
func (f *Forwarder) sweep() error {
	if len(f.ledger.flows) == 0 {
		return nil
	}
	var fresh []tcprepair.Flow
	for i := range f.rules.versions {
		elements, err := f.conn.GetSetElements(f.rules.versions[i].fresh)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.rules.versions[i].fresh.Name, err)
		}
		for _, e := range elements {
			if flow, err := decodeKey(e.Key); err == nil {
				fresh = append(fresh, flow)
			}
		}
	}
	return f.remove(f.ledger.begun(fresh))
}

// Run removes what is over, until ctx is done.
func (f *Forwarder) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		f.mu.Lock()
		err := ErrClosed
		if !f.closed {
			err = f.sweep()
		}
		f.mu.Unlock()
		if err != nil {
			return &OpError{Op: "run", Err: err}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

// Close ends the forwarder. Without Config.Keep the table goes with it.
func (f *Forwarder) Close() error { return f.end("close", !f.config.Keep) }

// Remove closes it and removes the table in any case.
func (f *Forwarder) Remove() error { return f.end("remove", true) }

func (f *Forwarder) end(op string, remove bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	var err error
	if remove {
		f.conn.DelTable(f.rules.table)
		err = f.flush()
	}
	if err := errors.Join(err, f.conn.CloseLasting()); err != nil {
		return &OpError{Op: op, Err: err}
	}
	return nil
}
