// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"bytes"

	"github.com/emiago/sipgo/sip"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// stage is what comes next in the stream:
//
//	searching ──start line──► fields ──empty line──► body ──► between
//	    ▲                        ▲                             │ │
//	    │                        └─────────start line──────────┘ └──TLS──► record ──► opaque
//	    └──────────── from anywhere, with anything else
type stage uint8

const (
	between   stage = iota // two messages
	fields                 // of a message's head
	body                   // of a message
	record                 // the version of a TLS record
	searching              // for a start line
	opaque                 // encrypted
)

const (
	// maxBody is the largest body that is read past; what claims more is not believed.
	maxBody = 1 << 20
	// maxDatagram is UDP's largest payload.
	maxDatagram = 65507
)

// Parser reads one direction of a SIP flow, TCP or UDP.
type Parser struct {
	cfg     Config
	flow    session.Key
	side    inspect.Side
	grammar *sip.Parser
	stage   stage
	lines   inspect.Lines
	head    head
	content []byte // the body so far
	skip    int    // bytes of a body that are read past
	stats   inspect.Stats
}

var _ inspect.Parser = (*Parser)(nil)

// NewParser returns a parser of what side sends on flow. It may start at any byte of a stream.
func NewParser(config Config, flow session.Key, side inspect.Side) (*Parser, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Parser{
		cfg: config, flow: flow, side: side, grammar: sip.NewParser(), lines: inspect.NewLines(config.Limits.Line),
	}, nil
}

// Feed reads the next bytes of a TCP stream.
func (p *Parser) Feed(b []byte) (halves []inspect.Half) {
	for len(b) > 0 && p.stage != opaque {
		switch {
		case p.skip > 0:
			n := min(p.skip, len(b))
			p.skip -= n
			b = b[n:]
		case p.stage == body:
			n := min(int(p.head.body)-len(p.content), len(b))
			p.content = append(p.content, b[:n]...)
			b = b[n:]
			if len(p.content) == int(p.head.body) {
				halves = p.message(halves, p.content)
				p.content = nil
				p.stage = between
			}
		case p.stage == between && !p.lines.Begun() && inspect.RecordType(b[0]):
			p.stage = record
			b = b[1:]
		case p.stage == record && inspect.RecordVersion(b[0]):
			p.stage = opaque
			halves = append(halves, inspect.Half{Protocol: inspect.SIP, Side: p.side, Flow: p.flow, Method: inspect.Opaque})
		case p.stage == record:
			p.search()
		default:
			line, rest, ok := p.lines.Next(b)
			b = rest
			if ok {
				halves = p.line(halves, line)
			}
		}
	}
	return halves
}

// line takes a whole line of a stream.
func (p *Parser) line(halves []inspect.Half, line inspect.Line) []inspect.Half {
	switch {
	case p.stage == fields && len(line.Text) > 0:
		if p.head.add(line); p.head.count > p.cfg.Limits.Fields {
			p.search()
		}
		return halves
	case p.stage != fields:
		p.start(line)
		return halves
	}
	p.head.flush()
	switch {
	case !p.head.sized || p.head.body > maxBody:
		// Without a length the next message cannot be found (RFC 3261, 18.3).
		p.search()
	case int(p.head.body) > p.cfg.Limits.Body:
		p.stats.Malformed++
		p.skip = int(p.head.body)
		p.stage = between
	case p.head.body > 0:
		p.stage = body
	default:
		p.stage = between
		halves = p.message(halves, nil)
	}
	return halves
}

// start takes a line where a message may begin. Empty ones in front of it are ignored: they keep a connection alive (RFC 5626, 4.4.1).
func (p *Parser) start(line inspect.Line) {
	switch {
	case !line.Cut && len(line.Text) == 0:
	case !line.Cut && p.head.start(line.Text):
		p.stage = fields
	case p.stage != searching:
		p.search()
	}
}

// search gives the present message up.
func (p *Parser) search() {
	p.stage = searching
	p.stats.Malformed++
	p.stats.Resyncs++
}

// Datagram reads one UDP datagram, which is one message or nothing (RFC 3261, 18.3).
func (p *Parser) Datagram(b []byte) []inspect.Half {
	if len(b) > maxDatagram {
		p.stats.Malformed++
		return nil
	}
	if len(bytes.Trim(b, "\r\n\x00")) == 0 {
		return nil // keeps a binding of a NAT alive
	}
	defer func() { p.head = head{} }() // flows are many, and nothing of one datagram matters to the next
	lines := inspect.NewLines(p.cfg.Limits.Line)
	for begun := false; ; {
		line, rest, ok := lines.Next(b)
		b = rest
		switch {
		case !ok:
			p.stats.Malformed++
			return nil
		case !begun && len(line.Text) == 0:
		case !begun:
			if begun = !line.Cut && p.head.start(line.Text); !begun {
				p.stats.Malformed++
				return nil
			}
		case len(line.Text) > 0:
			if p.head.add(line); p.head.count > p.cfg.Limits.Fields {
				p.stats.Malformed++
				return nil
			}
		default:
			return p.datagramBody(b)
		}
	}
}

// datagramBody takes what follows the head. Bytes behind the length that the head says are no part of the message.
func (p *Parser) datagramBody(b []byte) []inspect.Half {
	p.head.flush()
	if p.head.sized {
		if uint64(p.head.body) > uint64(len(b)) {
			p.stats.Malformed++
			return nil
		}
		b = b[:p.head.body]
	}
	if len(b) > p.cfg.Limits.Body {
		p.stats.Malformed++
		return nil
	}
	return p.message(nil, b)
}

// message takes a whole message, whose head is in p.head.
func (p *Parser) message(halves []inspect.Half, content []byte) []inspect.Half {
	text := p.head.end()
	if p.head.broken {
		p.stats.Malformed++
		return halves
	}
	parsed, _, err := p.grammar.ParseHeaders(text, false)
	if err != nil {
		p.stats.Malformed++
		return halves
	}
	half, ok := read(parsed)
	if !ok {
		p.stats.Malformed++
		return halves
	}
	p.stats.Messages++
	if half.Method == inspect.None || half.Status == 100 {
		return halves
	}
	if len(content) > 0 {
		described := !p.head.encoded()
		if described {
			half.Streams, described = describe(contentType(parsed), content)
		}
		if !described {
			p.stats.Malformed++
		}
	}
	half.Protocol, half.Side, half.Flow = inspect.SIP, p.side, p.flow
	return append(halves, half)
}

// Lost says that bytes are missing from the stream: what was begun is forgotten, and the next start line is searched for.
func (p *Parser) Lost() {
	if p.stage != opaque {
		p.lines.Reset()
		p.skip, p.content = 0, nil
		p.stage = searching
		p.stats.Resyncs++
	}
}

// Opaque tells whether the connection is encrypted: a TLS record came where a message was expected.
func (p *Parser) Opaque() bool { return p.stage == opaque }

// Stats returns what has been counted so far.
func (p *Parser) Stats() inspect.Stats { return p.stats }
