// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// receive takes in a record of the ring, maybe the last one that there is. It says whether a connection waits because of it that did not
// before.
func (p *Proxy) receive(record []byte, now time.Time, last bool) bool {
	k, err := decodePacket(record)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	defer func() {
		// A packet that is read after the switch would come after later ones, which took the forwarder's way.
		if last || len(p.sent) >= maxSent {
			p.switchPath()
		}
	}()
	p.stats.Packets++
	if err != nil {
		if errors.Is(err, errChecksum) {
			p.stats.Damaged++
		} else {
			p.config.Logger.Error("synproxy: a packet is lost", "error", err)
		}
		return false
	}
	c := p.conns[k.flow]
	if c != nil && !c.same(k) {
		// The client has used the port again.
		p.forget(c)
		c = nil
	}
	if c == nil {
		if k.state == synproxyStateSTATE_REFUSED || k.rst || k.size() == 0 {
			return false
		}
		c = &conn{flow: k.flow, cookie: k.cookie, isn: k.isn, choice: k.choice, since: now, deadline: now.Add(p.config.Patience)}
		p.conns[k.flow] = c
		p.stats.Requests++
		p.bound()
		c.take(p, k, now)
		return p.await(c)
	}
	c.take(p, k, now)
	return false
}

// await sees to it that a connection does not wait for ever. It says whether that waits.
func (p *Proxy) await(c *conn) bool {
	if c.phase == waiting {
		p.waiting = append(p.waiting, c)
	}
	return c.phase == waiting
}

// take takes in one packet of the connection.
func (c *conn) take(p *Proxy, k *packet, now time.Time) {
	if c.last == nil || int32(k.tsval-c.last.tsval) >= 0 {
		c.last = k
	}
	switch c.phase {
	case waiting, asked:
		if k.rst {
			if k.seq == c.next() || k.seq == c.base() {
				p.stats.Aborted++
				p.drop(c)
			}
			return
		}
		// Nobody has answered yet: there is nothing else to acknowledge.
		if k.ack == c.cookie+1 && c.stream.add(k, c.base()) && c.phase == waiting {
			p.ask(c, now)
		}
	case given, sent:
		// It came before the table led to the node.
		p.stats.Stragglers++
		p.pass(c, k)
	case answered:
		p.converse(c, k)
	case moving, over:
	}
}

// idleTime is how often it is looked whether anything is due: another goroutine may have decided (Return) while the reader sleeps.
const idleTime = 200 * time.Millisecond

// decisionTime is how long a decision may be put off.
const decisionTime = 10 * time.Second

// ask lets Decide see the request.
func (p *Proxy) ask(c *conn, now time.Time) {
	r := Request{
		Flow: c.flow, Bytes: c.stream.bytes, Ended: c.stream.ended, Since: c.since, Returned: c.returned,
		Negotiated: c.choice.Negotiated(c.flow, p.config.Parameters.WindowScale),
	}
	p.mu.Unlock()
	d := p.config.Decide(r)
	p.mu.Lock()
	if c.phase != waiting || p.closed {
		return
	}
	if d.Verb == Wait && (c.stream.ended || len(c.stream.bytes) >= p.config.RequestBytes) {
		d.Verb = Local
	}
	if d.Verb == Later {
		c.phase, c.deadline = asked, now.Add(decisionTime)
		p.asked = append(p.asked, c)
		return
	}
	if err := p.carryOut(c, d, now); err != nil {
		p.config.Logger.Warn("synproxy: a decision could not be carried out", "flow", c.flow, "decision", d.Verb, "error", err)
	}
}

// Decide carries out the decision on a request that Config.Decide has put off (Later), or that has come back (Return).
func (p *Proxy) Decide(f tcprepair.Flow, d Decision) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.conns[f]
	var err error
	switch {
	case p.closed:
		err = ErrClosed
	case c == nil || c.phase != asked:
		err = ErrNoFlow
	case d.Verb == Later:
	default:
		c.phase = waiting
		err = p.carryOut(c, d, time.Now())
		p.switchPath()
	}
	if err != nil {
		return &OpError{Op: d.Verb.String(), Flow: f, Err: err}
	}
	return nil
}

// Return takes a connection back from a node that could not make it (cookie.Report), and asks Config.Decide again. The error is ErrNoFlow when
// what the client had sent is not kept any more.
func (p *Proxy) Return(f tcprepair.Flow) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.switchPath()
	c := p.conns[f]
	if c == nil || c.phase != given {
		return &OpError{Op: "return", Flow: f, Err: ErrNoFlow}
	}
	changed := p.config.Table.Take(gate.Change{Flow: f, From: c.epoch, Owner: 0})
	if err := changed[0].Err; err != nil {
		return &OpError{Op: "return", Flow: f, Err: err}
	}
	c.epoch++
	c.returned++
	p.stats.Returned++
	now := time.Now()
	c.phase, c.deadline = waiting, now.Add(p.config.Patience)
	if err := p.mark(c, synproxyStateSTATE_WAIT); err != nil {
		return &OpError{Op: "return", Flow: f, Err: err}
	}
	p.ask(c, now)
	p.switchPath()
	p.await(c)
	return nil
}

// sweep does what is due, and says when to look again.
func (p *Proxy) sweep(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.switchPath()
	p.markGiven()
	p.waiting = p.due(p.waiting, waiting, now, func(c *conn) {
		p.stats.Slow++
		if len(c.stream.bytes) == 0 && !c.stream.ended {
			// The first packet was lost. The client will send it again, and all begins anew.
			p.forget(c)
			return
		}
		p.local(c)
	})
	p.asked = p.due(p.asked, asked, now, func(c *conn) {
		p.stats.Undue++
		p.reset(c)
	})
	p.kept = p.due(p.kept, given, now, p.forget)
	p.told = p.due(p.told, answered, now, p.drop)
	switch {
	case len(p.waiting) > 0:
		return p.config.Patience / 10
	case len(p.asked)+len(p.kept)+len(p.told) > 0:
		return p.config.Patience
	}
	return idleTime
}

// due calls act for those of a list that are in its phase still and whose time has come, and returns the others. All of a list are given the same
// time, so the first comes first.
func (p *Proxy) due(list []*conn, in phase, now time.Time, act func(*conn)) []*conn {
	for i, c := range list {
		if p.conns[c.flow] != c || c.phase != in {
			continue
		}
		if now.Before(c.deadline) {
			return list[i:]
		}
		act(c)
	}
	return nil
}

// bound forgets what is kept longest when there is too much.
func (p *Proxy) bound() {
	if len(p.conns) > p.config.MaxFlows {
		p.markGiven() // those that are forgotten must have been
	}
	for len(p.conns) > p.config.MaxFlows && len(p.kept) > 0 {
		c := p.kept[0]
		p.kept = p.kept[1:]
		if p.conns[c.flow] == c && c.phase == given {
			p.forget(c)
		}
	}
	for len(p.conns) > p.config.MaxFlows && len(p.waiting) > 0 {
		c := p.waiting[0]
		p.waiting = p.waiting[1:]
		if p.conns[c.flow] == c && c.phase == waiting {
			p.stats.Slow++
			p.local(c)
		}
	}
}

func (p *Proxy) forget(c *conn) {
	if p.conns[c.flow] == c {
		delete(p.conns, c.flow)
	}
}
