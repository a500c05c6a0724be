// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"fmt"
	"time"
)

// answerTime is how long a client may need to take in an answer.
const answerTime = 3 * time.Second

// answer sends the last words of a connection and its FIN in one segment, and then only acknowledges.
func (p *Proxy) answer(c *conn, text []byte, now time.Time) error {
	room := int(c.choice.Negotiated(c.flow, 0).MSS)
	if c.last.timestamps {
		room -= 12
	}
	if len(text) > room {
		p.reset(c)
		return fmt.Errorf("answer of %d bytes: %d fit a segment; give the connection to the stack", len(text), room)
	}
	c.phase = answered
	c.reply = &reply{seq: c.cookie + 1, flags: flagACK | flagPSH | flagFIN, payload: append([]byte(nil), text...)}
	p.stats.Refused++
	p.say(c, *c.reply)
	c.deadline = now.Add(answerTime)
	p.told = append(p.told, c)
	return p.mark(c, synproxyStateSTATE_REFUSED)
}

// converse reacts to what the client says to an answer.
func (p *Proxy) converse(c *conn, k *packet) {
	end := c.reply.seq + uint32(len(c.reply.payload)) + 1
	switch {
	case k.rst:
		p.drop(c)
		return
	case k.size() > 0:
		c.stream.add(k, c.base())
		if int32(k.ack-end) < 0 {
			// It has not got all, or had sent this before.
			p.say(c, *c.reply)
			return
		}
		p.say(c, reply{seq: end, flags: flagACK})
	}
}

// reset ends the connection with RST, of which nothing is left.
func (p *Proxy) reset(c *conn) {
	p.say(c, reply{seq: c.cookie + 1, flags: flagRST | flagACK})
	p.drop(c)
}

// say sends a segment to the client that acknowledges all it has sent.
func (p *Proxy) say(c *conn, r reply) {
	r.ack, r.tsval, r.tsecr = c.next(), c.last.tsecr+uint32(c.last.distance), c.last.tsval
	p.scratch = appendReply(p.scratch[:0], c.last, r)
	if err := p.sender.send(p.ifindex, p.scratch); err != nil {
		p.stats.Unsent++
		p.config.Logger.Warn("synproxy: cannot answer", "flow", c.flow, "error", err)
	}
}
