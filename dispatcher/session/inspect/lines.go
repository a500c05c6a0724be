// SPDX-License-Identifier: Apache-2.0

package inspect

import "bytes"

// Lines cuts a stream into lines, in whatever pieces it comes. It keeps no more than a line's beginning. Make one with NewLines.
type Lines struct {
	held  []byte
	cut   bool
	limit int
}

// NewLines returns Lines that keep at most limit bytes of a line, its end included.
func NewLines(limit int) Lines { return Lines{limit: limit} }

// Begun tells whether a part of a line is held.
func (l *Lines) Begun() bool { return len(l.held) > 0 || l.cut }

// Reset forgets what is held.
func (l *Lines) Reset() {
	l.held = l.held[:0]
	l.cut = false
}

// Line is a line of a stream without its end, CRLF or LF alone.
type Line struct {
	// Text is valid until Lines is used again.
	Text []byte
	// Cut: the line was longer than the limit, and Text is its beginning.
	Cut bool
}

// Next returns the line that ends in b, and b behind it. Where none ends there, b is held, as far as it has room.
func (l *Lines) Next(b []byte) (line Line, rest []byte, ok bool) {
	n := bytes.IndexByte(b, '\n')
	if n < 0 {
		l.hold(b)
		return Line{}, nil, false
	}
	rest = b[n+1:]
	if !l.Begun() && n < l.limit {
		return Line{Text: trimCR(b[:n])}, rest, true
	}
	l.hold(b[:n+1])
	line = Line{Text: l.held, Cut: l.cut}
	if !l.cut {
		line.Text = trimCR(l.held[:len(l.held)-1])
	}
	l.Reset()
	return line, rest, true
}

func (l *Lines) hold(b []byte) {
	if room := l.limit - len(l.held); len(b) > room {
		b, l.cut = b[:room], true
	}
	l.held = append(l.held, b...)
}

func trimCR(b []byte) []byte {
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return b[:n-1]
	}
	return b
}

// Field splits a header field at its colon: name and value without the white space around them (RFC 3261, 7.3.1). ok is false
// where there is no colon or no name.
func Field(line []byte) (name, value []byte, ok bool) {
	n := bytes.IndexByte(line, ':')
	if n < 0 {
		return nil, nil, false
	}
	name = bytes.TrimRight(line[:n], " \t")
	return name, bytes.Trim(line[n+1:], " \t"), len(name) > 0
}

// Number reads a decimal number of digits alone that is no larger than most.
func Number(b []byte, most uint32) (uint32, bool) {
	if len(b) == 0 || len(b) > 10 {
		return 0, false
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n <= uint64(most)
}

// Bytes that begin a TLS record (RFC 8446, 5.1). No message of a text protocol begins with them.
const (
	firstRecord = 0x14
	lastRecord  = 0x17
	majorTLS    = 0x03
)

// RecordType tells whether c is the type of a TLS record, its first byte.
func RecordType(c byte) bool { return c >= firstRecord && c <= lastRecord }

// RecordVersion tells whether c is the first byte of a TLS record's version, its second byte.
func RecordVersion(c byte) bool { return c == majorTLS }
