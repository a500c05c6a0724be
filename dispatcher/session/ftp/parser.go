// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Parser reads one direction of an FTP control connection.
type Parser struct {
	flow   session.Key
	side   inspect.Side
	lines  inspect.Lines
	telnet telnet
	reply  uint16 // the code of a reply of several lines that is not over; 0: none
	opaque bool
	lost   bool // the rest of a line is read past
	stats  inspect.Stats
}

var _ inspect.Parser = (*Parser)(nil)

// NewParser returns a parser of what side sends on flow. It may start at any byte of the stream.
func NewParser(config Config, flow session.Key, side inspect.Side) (*Parser, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Parser{flow: flow, side: side, lines: inspect.NewLines(config.Limits.Line)}, nil
}

// Feed reads the next bytes of the stream.
func (p *Parser) Feed(b []byte) (halves []inspect.Half) {
	for len(b) > 0 && !p.opaque {
		if p.telnet == text && !p.lines.Begun() && !p.lost && inspect.RecordType(b[0]) {
			p.opaque = true
			halves = append(halves, p.half(inspect.Half{Method: inspect.Opaque}))
			break
		}
		var chunk []byte
		if chunk, b = p.telnet.next(b); len(chunk) == 0 {
			continue
		}
		if line, _, ok := p.lines.Next(chunk); ok {
			halves = p.line(halves, line)
		}
	}
	return halves
}

func (p *Parser) half(h inspect.Half) inspect.Half {
	h.Protocol, h.Side, h.Flow = inspect.FTP, p.side, p.flow
	return h
}

func (p *Parser) line(halves []inspect.Half, line inspect.Line) []inspect.Half {
	if p.lost {
		p.lost = false
		return halves
	}
	var h inspect.Half
	var found verdict
	if p.side == inspect.Client {
		h, found = readCommand(line)
	} else {
		h, found = p.readReply(line)
	}
	switch found {
	case nothing:
		return halves
	case malformed:
		p.stats.Malformed++
		return halves
	case understood:
		p.stats.Messages++
		return halves
	}
	p.stats.Messages++
	return append(halves, p.half(h))
}

// verdict says what a line is.
type verdict uint8

const (
	nothing    verdict = iota // a line within a reply
	malformed                 // neither command nor reply
	understood                // one that is no half
	isHalf
)

// readReply reads a line of the server's. A reply of several lines counts as its last, and what stands between, which may be a
// user's text, is not read (RFC 959, 4.2).
func (p *Parser) readReply(line inspect.Line) (inspect.Half, verdict) {
	code, last, ok := replyCode(line.Text)
	switch {
	case p.reply != 0 && (!ok || !last || code != p.reply):
		return inspect.Half{}, nothing
	case p.reply != 0:
		p.reply = 0
	case !ok:
		return inspect.Half{}, malformed
	case !last:
		p.reply = code
		return inspect.Half{}, nothing
	}
	return readReply(code, line)
}

// Datagram finds nothing: FTP has no UDP.
func (p *Parser) Datagram([]byte) []inspect.Half { return nil }

// Lost says that bytes are missing from the stream: the rest of the line is read past.
func (p *Parser) Lost() {
	if !p.opaque {
		p.lines.Reset()
		p.telnet, p.reply, p.lost = text, 0, true
		p.stats.Resyncs++
	}
}

// Opaque tells whether the connection is encrypted: a TLS record came where a line was expected, after AUTH TLS (RFC 4217) or
// from the beginning.
func (p *Parser) Opaque() bool { return p.opaque }

// Stats returns what has been counted so far.
func (p *Parser) Stats() inspect.Stats { return p.stats }
