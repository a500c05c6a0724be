// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"bytes"
	"math"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// head collects what matters of a message's head: the start line and a few fields, unfolded, in their long form. So a message of any
// size costs little to keep, and a field that nobody needs cannot make it unreadable.
type head struct {
	text   []byte // ends of lines included
	line   []byte // the last line, which the next may continue
	count  int
	body   uint32
	seen   uint16
	broken bool
	sized  bool
}

func (h *head) reset() { *h = head{text: h.text[:0], line: h.line[:0]} }

// maxFolded bounds a field that goes over several lines, in bytes.
const maxFolded = 8192

// field is a header field that matters, with its compact form (RFC 3261, 7.3.3; RFC 4028, 4).
type field struct{ name, compact string }

const (
	fieldLength      = 0
	fieldEncoding    = 1
	fieldContentType = 2
)

// fieldOf returns the number of a field in the list of those that matter, and its name.
func fieldOf(name []byte) (int, string) {
	for i, f := range [...]field{
		fieldLength: {"Content-Length", "l"}, fieldEncoding: {"Content-Encoding", "e"}, fieldContentType: {"Content-Type", "c"},
		3: {"Call-ID", "i"}, 4: {"From", "f"}, 5: {"To", "t"}, 6: {"CSeq", ""}, 7: {"RAck", ""}, 8: {"Session-Expires", "x"},
	} {
		if len(name) == len(f.name) && bytes.EqualFold(name, []byte(f.name)) ||
			len(name) == 1 && len(f.compact) == 1 && name[0]|0x20 == f.compact[0] {
			return i, f.name
		}
	}
	return -1, ""
}

// start takes the start line, if it is one.
func (h *head) start(line []byte) bool {
	if !isStart(line) {
		return false
	}
	h.reset()
	h.text = append(append(h.text, line...), "\r\n"...)
	return true
}

const versionText = "SIP/2.0"

// isStart tells whether line is a request line or a status line (RFC 3261, 7.1 and 7.2).
func isStart(line []byte) bool {
	if bytes.ContainsRune(line, '\r') {
		return false
	}
	first, rest, _ := bytes.Cut(line, []byte(" "))
	second, third, _ := bytes.Cut(rest, []byte(" "))
	if bytes.EqualFold(first, []byte(versionText)) {
		status, ok := inspect.Number(second, 699)
		return ok && status >= 100
	}
	if len(first) == 0 || len(first) > 32 || len(second) == 0 || !bytes.EqualFold(third, []byte(versionText)) {
		return false
	}
	for _, c := range first {
		if c <= ' ' || c >= 0x7f || c == ':' {
			return false
		}
	}
	return true
}

// add takes a line of the head that is not empty. Its field is read when the next line does not continue it.
func (h *head) add(line inspect.Line) {
	h.count++
	if c := line.Text[0]; c == ' ' || c == '\t' {
		h.line = append(append(h.line, ' '), bytes.TrimLeft(line.Text, " \t")...)
	} else {
		h.flush()
		h.line = append(h.line, line.Text...)
	}
	if line.Cut || len(h.line) > maxFolded {
		if name, _, _ := inspect.Field(h.line); known(name) {
			h.broken = true
		}
		h.line = h.line[:0]
	}
}

func known(name []byte) bool {
	n, _ := fieldOf(name)
	return n >= 0
}

// flush reads the field that is complete now.
func (h *head) flush() {
	name, value, _ := inspect.Field(h.line)
	n, long := fieldOf(name)
	switch {
	case n < 0:
	case n == fieldLength:
		size, ok := inspect.Number(value, math.MaxUint32)
		if !ok || h.sized && size != h.body {
			size = math.MaxUint32 // larger than any limit: where the message ends is not known
		}
		h.body, h.sized = size, true
	case h.seen&(1<<n) != 0 || bytes.ContainsRune(value, '\r'):
		// What stands twice may be read differently by the server.
		h.broken = true
	default:
		h.seen |= 1 << n
		h.text = append(h.text, long...)
		h.text = append(h.text, ": "...)
		h.text = append(append(h.text, value...), "\r\n"...)
	}
	h.line = h.line[:0]
}

// end takes the empty line, and returns the head for a parser of heads.
func (h *head) end() []byte {
	h.flush()
	h.text = append(h.text, "\r\n"...)
	return h.text
}

// encoded tells whether the body is compressed.
func (h *head) encoded() bool { return h.seen&(1<<fieldEncoding) != 0 }
