// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// freshPeriods is how old a cookie may be for a node to be shown it. Nodes accept it for one period more.
const freshPeriods = 1

// carryOut does what was decided on a waiting connection.
func (p *Proxy) carryOut(c *conn, d Decision, now time.Time) error {
	switch d.Verb {
	case Wait:
		return nil
	case Forward:
		if c.last.age > freshPeriods {
			p.stats.Aged++
			p.local(c)
			return nil
		}
		err := p.forward(c, d.Node, now)
		if err != nil {
			p.reset(c)
			p.done(c, d.Node, err)
		}
		return err
	case Local:
		p.local(c)
		return nil
	case Answer:
		return p.answer(c, d.Answer, now)
	case Reset:
		p.stats.Reset++
		p.reset(c)
		return nil
	case Later:
	}
	return fmt.Errorf("%v is no decision", d.Verb)
}

// forward sends the connection's packets to a node. The table follows when there is nothing else to read, for many flows at a time
// (switchPath); until then what the client sends comes by the ring and is sent after the others.
func (p *Proxy) forward(c *conn, to gate.Node, now time.Time) error {
	n, ok := p.nodes[to]
	if !ok {
		return fmt.Errorf("%w: %d", ErrNoNode, to)
	}
	c.node = to
	// Packets that arrived in disorder leave in order: the first one makes the connection.
	if len(c.stream.packets) > 1 {
		base := c.base()
		slices.SortStableFunc(c.stream.packets, func(a, b *packet) int { return int(int32(a.seq-base)) - int(int32(b.seq-base)) })
	}
	for _, k := range c.stream.packets {
		p.sendTo(n, k)
	}
	c.phase = sent
	c.deadline = now.Add(p.config.Keep)
	p.sent = append(p.sent, c)
	return nil
}

// maxSent is how many flows are switched at once.
const maxSent = 64

// switchPath has later packets of the connections that were sent to nodes take the forwarder's way.
func (p *Proxy) switchPath() {
	if len(p.sent) == 0 {
		return
	}
	p.changes = p.changes[:0]
	for _, c := range p.sent {
		p.changes = append(p.changes, gate.Change{Flow: c.flow, From: c.epoch, Owner: c.node})
	}
	changed := p.config.Table.Take(p.changes...)
	for i, c := range p.sent {
		r := changed[i]
		if errors.Is(r.Err, gate.ErrExists) && r.Route.Node == 0 && r.Route.Entry() { // it went to this host's stack once
			r = p.config.Table.Take(gate.Change{Flow: c.flow, From: r.Route.Epoch, Owner: c.node})[0]
		}
		p.switched(c, r)
	}
	p.sent = p.sent[:0]
}

// switched takes in what the table says.
func (p *Proxy) switched(c *conn, r gate.Changed) {
	// The node has it already: if its agent has even told of its end, so much the better.
	if r.Err != nil && !errors.Is(r.Err, gate.ErrNoFlow) {
		p.stats.Failed++
		p.config.Logger.Warn("synproxy: a connection is reset, for the flow table does not take it", "flow", c.flow, "error", r.Err)
		if n, ok := p.nodes[c.node]; ok {
			p.sendTo(n, c.stream.packets[0].abort(c.next()))
		}
		if p.conns[c.flow] == c {
			p.reset(c)
		}
		p.done(c, c.node, r.Err)
		return
	}
	c.epoch = r.Route.Epoch
	c.phase = given
	p.stats.Forwarded++
	p.kept = append(p.kept, c)
	// Until it is marked, late copies come to this process, which sends them on.
	if p.unmarked = append(p.unmarked, c); len(p.unmarked) >= maxMarks {
		p.markGiven()
	}
	p.done(c, c.node, nil)
}

func (p *Proxy) done(c *conn, to gate.Node, err error) {
	if p.config.Done != nil {
		p.config.Done(c.flow, to, err)
	}
}

// maxMarks is how many flows are marked at once, since a system call for each would be a good part of the work.
const maxMarks = 64

// markGiven tells the program which flows were given to nodes.
func (p *Proxy) markGiven() {
	keys, values := make([][cookie.FlowSize]byte, 0, maxMarks), make([]synproxyPending, 0, maxMarks)
	for _, c := range p.unmarked {
		if c.phase != given || p.conns[c.flow] != c {
			continue
		}
		var key [cookie.FlowSize]byte
		cookie.AppendFlow(key[:0], c.flow)
		keys = append(keys, key)
		values = append(values, synproxyPending{Cookie: c.cookie, Isn: c.isn, State: synproxyStateSTATE_GIVEN, Choice: uint32(c.choice)})
	}
	p.unmarked = p.unmarked[:0]
	if len(keys) == 0 {
		return
	}
	if _, err := p.objects.Flows.BatchUpdate(keys, values, nil); err != nil {
		p.config.Logger.Error("synproxy: cannot mark flows", "error", err)
	}
}

// adopt records the flow as this host's.
func (p *Proxy) adopt(c *conn) error {
	r, err := p.config.Table.Adopt(c.flow, 1, 0)
	switch {
	case err == nil:
		c.epoch = 1
	case errors.Is(err, gate.ErrExists) && r.Node == 0 && r.Entry():
		c.epoch = r.Epoch
	default:
		return err
	}
	return nil
}

// pass sends a straggler after the others.
func (p *Proxy) pass(c *conn, k *packet) {
	if n, ok := p.nodes[c.node]; ok {
		p.sendTo(n, k)
	}
}

func (p *Proxy) sendTo(n node, k *packet) {
	copy(k.frame[vnetSize:], n.dst[:])
	copy(k.frame[vnetSize+6:], n.src[:])
	if err := p.sender.send(n.ifindex, k.frame); err != nil {
		p.stats.Unsent++
		p.config.Logger.Warn("synproxy: cannot send a packet on", "flow", k.flow, "error", err)
	}
}

// mark tells the program what has become of the flow.
func (p *Proxy) mark(c *conn, state synproxyState) error {
	var key [cookie.FlowSize]byte
	cookie.AppendFlow(key[:0], c.flow)
	v := synproxyPending{Cookie: c.cookie, Isn: c.isn, State: state, Choice: uint32(c.choice)}
	if err := p.objects.Flows.Put(key[:], v); err != nil {
		return fmt.Errorf("mark the flow: %w", err)
	}
	return nil
}

// drop forgets a connection, also in the kernel: nothing of it is answered any more.
func (p *Proxy) drop(c *conn) {
	c.phase = over
	p.forget(c)
	var key [cookie.FlowSize]byte
	cookie.AppendFlow(key[:0], c.flow)
	if err := p.objects.Flows.Delete(key[:]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		p.config.Logger.Error("synproxy: cannot forget a flow", "flow", c.flow, "error", err)
	}
}

// local gives the connection to this host's stack, which takes longer than the reader may wait. What the client sends meanwhile it will have
// to send again.
func (p *Proxy) local(c *conn) {
	c.phase = moving
	if p.config.Stack == nil {
		p.moved(c, errors.New("no stack to give it to"))
		return
	}
	if c.epoch == 0 {
		if err := p.adopt(c); err != nil {
			p.moved(c, err)
			return
		}
	}
	s := c.snapshot(p.config.Parameters.WindowScale, p.config.Window)
	p.moves.Add(1)
	go func() {
		defer p.moves.Done()
		err := p.config.Stack.Inject(s)
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.closed {
			p.moved(c, err)
		}
	}()
}

// moved says what has become of a connection that was given to the stack.
func (p *Proxy) moved(c *conn, err error) {
	if p.conns[c.flow] != c {
		return // the client has begun anew
	}
	if err == nil {
		err = p.mark(c, synproxyStateSTATE_LOCAL)
	}
	if err != nil {
		p.stats.Failed++
		p.config.Logger.Warn("synproxy: a connection is reset, for this host cannot go on with it", "flow", c.flow, "error", err)
		p.reset(c)
		return
	}
	p.stats.Local++
	c.phase = over
	p.forget(c)
}

// snapshot describes the connection as its socket would be.
func (c *conn) snapshot(scale uint8, window uint16) *tcprepair.Snapshot {
	n := c.choice.Negotiated(c.flow, scale)
	s := &tcprepair.Snapshot{
		Flow: c.flow, State: tcprepair.Established, Negotiated: n, SendSeq: c.cookie + 1, ReceiveSeq: c.base(), Received: c.stream.bytes, AckDue: true,
		Window: tcprepair.Window{
			LastUpdate: c.base(), Send: c.last.window(n.SendScale), MaxSend: c.last.window(n.SendScale), Receive: uint32(window), Announced: c.base(),
		},
		Advice: tcprepair.Advice{RTT: time.Duration(c.last.distance) * time.Millisecond},
	}
	if c.stream.ended {
		s.State = tcprepair.CloseWait
	}
	if n.Timestamps {
		// Even: its clock ticks in milliseconds.
		s.Timestamp = (c.last.tsecr + uint32(c.last.distance) + 1) &^ 1
	}
	return s
}
