// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// receive takes in a record of the ring.
func (p *Proxy) receive(record []byte, now time.Time) {
	k, err := decodePacket(record)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.stats.Packets++
	if err != nil {
		if errors.Is(err, errChecksum) {
			p.stats.Damaged++
		} else {
			p.config.Logger.Error("synproxy: a packet is lost", "error", err)
		}
		return
	}
	c := p.conns[k.flow]
	if c != nil && !c.same(k) {
		// The client has used the port again.
		p.forget(c)
		c = nil
	}
	if c == nil {
		if k.state == synproxyStateSTATE_REFUSED || k.rst || k.size() == 0 {
			return
		}
		c = &conn{flow: k.flow, cookie: k.cookie, isn: k.isn, choice: k.choice, since: now, deadline: now.Add(p.config.Patience)}
		p.conns[k.flow] = c
		p.waiting = append(p.waiting, c)
		p.stats.Requests++
		p.bound()
	}
	c.take(p, k, now)
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
		held, grown := c.stream.add(k, c.base())
		switch {
		case c.phase == asked:
		case grown:
			p.ask(c, now)
		case !held:
			// The client sends again what nobody has acknowledged, or has sent too much.
			p.local(c)
		}
	case given:
		// It came before the table led to the node.
		p.stats.Stragglers++
		p.pass(c, k)
	case answered:
		p.converse(c, k)
	case over:
	}
}

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
		c.phase = asked
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
	c := p.conns[f]
	if c == nil || c.phase != given {
		return &OpError{Op: "return", Flow: f, Err: ErrNoFlow}
	}
	changed := p.config.Table.CommitAll(gate.Change{Flow: f, From: c.epoch, Owner: 0})
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
	p.waiting = append(p.waiting, c)
	p.ask(c, now)
	return nil
}

// sweep does what is due. It says whether there is more to come.
func (p *Proxy) sweep(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for ; n < len(p.waiting); n++ {
		c := p.waiting[n]
		if c.phase != waiting || p.conns[c.flow] != c {
			continue
		}
		if now.Before(c.deadline) {
			break
		}
		p.stats.Slow++
		p.local(c)
	}
	p.waiting = p.waiting[n:]
	for n = 0; n < len(p.kept); n++ {
		c := p.kept[n]
		if p.conns[c.flow] != c || c.phase != given && c.phase != answered {
			continue
		}
		if now.Before(c.deadline) {
			break
		}
		if c.phase == answered {
			p.drop(c)
			continue
		}
		p.forget(c)
	}
	p.kept = p.kept[n:]
	return len(p.waiting)+len(p.kept) > 0
}

// keep remembers a connection for some time after the decision.
func (p *Proxy) keep(c *conn, now time.Time) {
	c.deadline = now.Add(p.config.Keep)
	p.kept = append(p.kept, c)
}

// bound forgets what is kept longest when there is too much.
func (p *Proxy) bound() {
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
