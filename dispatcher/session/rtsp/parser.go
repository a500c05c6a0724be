// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"bytes"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// stage is what comes next in the stream:
//
//	searching ──start line──► fields ──empty line──► between ──'$'──► frame ──► between
//	    ▲                        ▲                     │ │
//	    │                        └─────start line──────┘ └──TLS──► record ──► opaque
//	    └──────────── from anywhere, with anything else
type stage uint8

const (
	between   stage = iota // two messages
	fields                 // of a message's head
	frame                  // the head of an interleaved frame
	record                 // the version of a TLS record
	searching              // for a start line
	opaque                 // encrypted
)

const (
	frameMark = '$' // RFC 2326, 10.12; RFC 7826, 14
	frameHead = 4   // mark, channel, 16 bits of length
)

// Parser reads one direction of an RTSP connection.
type Parser struct {
	cfg   Config
	flow  session.Key
	side  inspect.Side
	stage stage
	lines inspect.Lines
	skip  int // bytes of a body or a frame that are read past
	head  [frameHead]byte
	got   int // bytes of head
	msg   message
	stats inspect.Stats
}

var _ inspect.Parser = (*Parser)(nil)

// NewParser returns a parser of what side sends on flow. It may start at any byte of the stream.
func NewParser(config Config, flow session.Key, side inspect.Side) (*Parser, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Parser{cfg: config, flow: flow, side: side, lines: inspect.NewLines(config.Limits.Line)}, nil
}

// Feed reads the next bytes of the stream.
func (p *Parser) Feed(b []byte) (halves []inspect.Half) {
	for len(b) > 0 && p.stage != opaque {
		switch {
		case p.skip > 0:
			n := min(p.skip, len(b))
			p.skip -= n
			b = b[n:]
		case p.stage == between && !p.lines.Begun() && b[0] == frameMark:
			p.stage, p.got = frame, 0
		case p.stage == between && !p.lines.Begun() && inspect.RecordType(b[0]):
			p.stage = record
			b = b[1:]
		case p.stage == record && inspect.RecordVersion(b[0]):
			p.stage = opaque
			halves = append(halves, inspect.Half{Protocol: inspect.RTSP, Side: p.side, Flow: p.flow, Method: inspect.Opaque})
		case p.stage == record:
			p.search()
		case p.stage == frame:
			n := copy(p.head[p.got:], b)
			b = b[n:]
			if p.got += n; p.got == frameHead {
				p.skip = int(p.head[2])<<8 | int(p.head[3])
				p.stage = between
			}
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

// line takes a whole line.
func (p *Parser) line(halves []inspect.Half, line inspect.Line) []inspect.Half {
	switch {
	case p.stage != fields:
		p.start(line)
		return halves
	case len(line.Text) > 0:
		if p.msg.count++; p.msg.count > p.cfg.Limits.Fields {
			p.search()
			return halves
		}
		p.msg.field(line, p.side)
		return halves
	}
	p.msg.flush(p.side)
	p.stage = between
	if p.msg.body > uint32(p.cfg.Limits.Body) {
		p.search()
		return halves
	}
	p.skip = int(p.msg.body)
	if !p.msg.valid() {
		p.stats.Malformed++
		return halves
	}
	p.stats.Messages++
	if half, ok := p.msg.half(); ok {
		half.Side, half.Flow = p.side, p.flow
		halves = append(halves, half)
	}
	return halves
}

// start takes a line where a message may begin. Empty ones in front of it are ignored (RFC 7826, 20.2).
func (p *Parser) start(line inspect.Line) {
	if len(bytes.TrimSpace(line.Text)) == 0 && !line.Cut {
		return
	}
	p.msg.reset()
	ok := !line.Cut && p.msg.start(line.Text)
	if !ok && p.stage != searching {
		p.search()
	}
	if !ok {
		ok = !line.Cut && p.msg.find(line.Text)
	}
	if ok {
		p.stage = fields
	}
}

// search gives the present message up.
func (p *Parser) search() {
	p.stage = searching
	p.stats.Malformed++
	p.stats.Resyncs++
}

// Datagram finds nothing: RTSP over UDP is no longer (RFC 7826, appendix I).
func (p *Parser) Datagram([]byte) []inspect.Half { return nil }

// Lost says that bytes are missing from the stream: what was begun is forgotten, and the next start line is searched for.
func (p *Parser) Lost() {
	if p.stage != opaque {
		p.lines.Reset()
		p.skip = 0
		p.stage = searching
		p.stats.Resyncs++
	}
}

// Opaque tells whether the connection is encrypted: a TLS record came where a message was expected.
func (p *Parser) Opaque() bool { return p.stage == opaque }

// Stats returns what has been counted so far.
func (p *Parser) Stats() inspect.Stats { return p.stats }
