// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// maxBatch is how many elements one transaction changes at most: it must fit into the socket's buffer.
const maxBatch = 128

// Gate holds the packets of single connections, or sends them on. Its methods are safe for concurrent use.
type Gate struct {
	config Config
	rules  *ruleset

	mu     sync.Mutex
	conn   *nftables.Conn
	reader *nftables.Conn                    // used by Run alone, without mu
	unseen map[tcprepair.Flow]gate.RouteInfo // the same: flows that were not seen the last time
	ledger ledger
	holds  holds
	nodes  map[gate.Node]way
	chains map[gate.Node]bool           // chains that exist
	mutes  map[tcprepair.Flow]time.Time // flows of other nodes that this host is still mute for
	lapsed uint64
	closed bool
	wire   *wire
}

// Open makes the table, or takes it over, in the network namespace of the calling thread. ErrPermission without CAP_NET_ADMIN;
// ErrUnsupported where the kernel has no nftables for netdev.
func Open(config Config) (_ *Gate, err error) {
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
	g := &Gate{
		config: config, rules: newRuleset(config), ledger: newLedger(), holds: newHolds(),
		nodes: make(map[gate.Node]way), mutes: make(map[tcprepair.Flow]time.Time), chains: make(map[gate.Node]bool),
	}
	if g.wire, err = openWire(); err != nil {
		return nil, err
	}
	for _, c := range []**nftables.Conn{&g.conn, &g.reader} {
		if *c, err = nftables.New(nftables.AsLasting()); err != nil {
			return nil, errors.Join(err, g.hangUp())
		}
	}
	if err := g.open(); err != nil {
		return nil, errors.Join(err, g.hangUp())
	}
	return g, nil
}

// hangUp closes what Open has opened.
func (g *Gate) hangUp() error {
	errs := []error{g.wire.close()}
	for _, c := range []*nftables.Conn{g.conn, g.reader} {
		if c != nil {
			errs = append(errs, c.CloseLasting())
		}
	}
	return errors.Join(errs...)
}

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w: needs Linux 5.16 with CONFIG_NF_TABLES_NETDEV, CONFIG_NFT_DUP_NETDEV and CONFIG_NETFILTER_EGRESS: %w", ErrUnsupported, err)
	}
	return err
}

func (g *Gate) open() error {
	for _, name := range g.config.Interfaces {
		if _, err := net.InterfaceByName(name); err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	// All of it is one transaction; what is there already stays as it is.
	g.conn.AddTable(g.rules.table)
	for i := range g.rules.versions {
		for _, s := range g.rules.versions[i].sets() {
			if err := g.conn.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	if err := g.conn.AddSet(g.rules.names, nil); err != nil {
		return err
	}
	for _, name := range []string{countHeld, countMuted, countForwarded} {
		g.conn.AddObj(&nftables.CounterObj{Table: g.rules.table, Name: name})
	}
	if err := g.flush(); err != nil {
		return fmt.Errorf("make the table: %w", err)
	}
	if err := g.load(); err != nil {
		return err
	}
	for _, name := range g.config.Interfaces {
		for _, h := range []struct {
			chain *nftables.Chain
			rules [][]expr.Any
		}{{g.rules.hook(name), g.rules.hookRules()}, {g.rules.egress(name), g.rules.egressRules()}} {
			c := g.conn.AddChain(h.chain)
			g.conn.FlushChain(c)
			for _, r := range h.rules {
				g.conn.AddRule(&nftables.Rule{Table: g.rules.table, Chain: c, Exprs: r})
			}
		}
	}
	if err := g.flush(); err != nil {
		return fmt.Errorf("make the chains: %w", err)
	}
	return nil
}

// load learns what a former process has left. What that held stays held until its time is over; what it sent after flows that have moved is
// not renewed.
func (g *Gate) load() error {
	now := time.Now()
	for i := range g.rules.versions {
		v := &g.rules.versions[i]
		elements, err := g.elements(v.flows)
		if err != nil {
			return err
		}
		for _, e := range elements {
			flow, err := decodeKey(e.Key)
			r, too := decodeOwner(e.Comment)
			if err := errors.Join(err, too); err != nil {
				return fmt.Errorf("table %s, %s: %w", g.config.Table, v.flows.Name, err)
			}
			g.ledger.flows[flow] = r
			g.chains[r.Node] = true
		}
		// A version before this one has not recorded them, or they have not been used since: they have all of their time again.
		for part := range slices.Chunk(elements, maxBatch) {
			seen := make([]nftables.SetElement, len(part))
			for i, e := range part {
				seen[i] = nftables.SetElement{Key: e.Key, Timeout: g.config.IdleTimeout}
			}
			if err := errors.Join(g.conn.SetAddElements(v.seen, seen), g.flush()); err != nil {
				return fmt.Errorf("change %s: %w", v.seen.Name, err)
			}
		}
		for _, held := range []struct {
			set *nftables.Set
			d   gate.Direction
		}{{v.held, gate.Ingress}, {v.kept, keeps}, {v.muted, gate.Egress}} {
			if elements, err = g.elements(held.set); err != nil {
				return err
			}
			for _, e := range elements {
				if flow, err := decodeKey(e.Key); err == nil {
					g.holds.held[flow] = hold{until: now.Add(e.Expires), directions: g.holds.held[flow].directions | held.d}
				}
			}
		}
		if elements, err = g.elements(v.strays); err != nil {
			return err
		}
		for _, e := range elements {
			if flow, err := decodeKey(e.Key); err == nil && nodeOf(e.Comment) != 0 {
				g.holds.strays[flow] = stray{to: nodeOf(e.Comment), until: now.Add(e.Expires)}
			}
		}
	}
	chains, err := g.conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	if err != nil {
		return fmt.Errorf("list the chains: %w", err)
	}
	wanted := make(map[string]bool)
	for _, name := range g.config.Interfaces {
		wanted[hookName(name)], wanted[egressName(name)] = true, true
	}
	for _, c := range chains {
		if c.Table.Name != g.config.Table {
			continue
		}
		if n := nodeOf(c.Name); n != 0 {
			g.chains[n] = true
		}
		if isHook(c.Name) && !wanted[c.Name] {
			c.Table = g.rules.table
			g.conn.FlushChain(c)
			g.conn.DelChain(c)
		}
	}
	return nil
}

// flush carries the transaction out. It is called with the lock held.
func (g *Gate) flush() error {
	err := g.conn.Flush()
	if errors.Is(err, unix.ENFILE) {
		return fmt.Errorf("%w: %w", gate.ErrFull, err)
	}
	return err
}

// elements reads a set.
func (g *Gate) elements(s *nftables.Set) ([]nftables.SetElement, error) {
	elements, err := g.conn.GetSetElements(s)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.Name, err)
	}
	return elements, nil
}

// SetNode says how a node is reached: frames leave by the interface, from MAC src to MAC dst.
func (g *Gate) SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error {
	fail := func(err error) error { return &OpError{Op: "set node", Err: fmt.Errorf("node %d: %w", n, err)} }
	if n == 0 || n >= MaxNodes {
		return fail(fmt.Errorf("want 1 to %d (0 is this host)", MaxNodes-1))
	}
	if ifindex <= 0 || len(dst) != 6 || len(src) != 6 {
		return fail(errors.New("want an interface and two Ethernet addresses"))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return fail(ErrClosed)
	}
	c := g.conn.AddChain(g.rules.node(chainName(n)))
	g.conn.FlushChain(c)
	for _, r := range g.rules.nodeRules(ifindex, dst, src) {
		g.conn.AddRule(&nftables.Rule{Table: g.rules.table, Chain: c, Exprs: r})
	}
	if err := g.flush(); err != nil {
		return fail(err)
	}
	g.chains[n] = true
	g.nodes[n] = way{ifindex: ifindex, dst: slices.Clone(dst), src: slices.Clone(src)}
	return nil
}

// SetService says that new connections to vip are this host's (nodes is node 0 alone). Anything else is ErrUnsupported.
func (g *Gate) SetService(vip netip.AddrPort, nodes []gate.Node) error {
	if len(nodes) != 1 || nodes[0] != 0 {
		return &OpError{Op: "set service " + vip.String(), Err: Check(Needs{Nodes: true})}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ledger.services[vip] = true
	return nil
}

// RemoveService ends that. Known flows keep their owners.
func (g *Gate) RemoveService(vip netip.AddrPort) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.ledger.services, vip)
	return nil
}

// Services returns the services whose new connections are this host's, in no order.
func (g *Gate) Services() ([]netip.AddrPort, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.ledger.services)), nil
}

// Shut would make new connections of a service wait: that is ErrUnsupported.
func (*Gate) Shut(vip netip.AddrPort, _ time.Duration) error {
	return &OpError{Op: "shut " + vip.String(), Err: fmt.Errorf("new connections that wait: %w", ErrUnsupported)}
}

// Open would end that: nothing waits.
func (*Gate) Open(netip.AddrPort) (gate.Held, error) { return gate.Held{}, nil }

// Close ends the gate. Without Config.Keep the table goes with it, and what it held passes.
func (g *Gate) Close() error { return g.end("close", !g.config.Keep) }

// Remove closes it and removes the table in any case.
func (g *Gate) Remove() error { return g.end("remove", true) }

func (g *Gate) end(op string, remove bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	var err error
	if remove {
		g.conn.DelTable(g.rules.table)
		err = g.flush()
	}
	if err := errors.Join(err, g.hangUp()); err != nil {
		return &OpError{Op: op, Err: err}
	}
	return nil
}
