// SPDX-License-Identifier: Apache-2.0

package rtsp

import (
	"bytes"
	"math"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// maxTimeout bounds a session's timeout in seconds: a day.
const maxTimeout = 86400

// maxFolded bounds a field that goes over several lines, in bytes.
const maxFolded = 8192

// message is the part of a message that matters, filled in line by line.
type message struct {
	method  inspect.Method
	status  uint16 // 0: a request
	seq     uint32
	target  uint64
	session string
	timeout time.Duration
	streams []inspect.Stream
	body    uint32
	count   int // fields
	seen    struct{ seq, body, broken bool }
	pending []byte // the last field, which the next line may continue
}

func (m *message) reset() { *m = message{pending: m.pending[:0]} }

// start reads a start line.
func (m *message) start(line []byte) bool {
	if status, ok := statusLine(line); ok {
		m.status = status
		return true
	}
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	if !isVersion(version) || len(version) != versionSize || len(target) == 0 || !isMethod(method) {
		return false
	}
	m.method, m.target = methodOf(method), inspect.Digest(target)
	return true
}

// find reads a start line behind bytes of something else: an interleaved frame whose head was missed.
func (m *message) find(line []byte) bool {
	at := bytes.LastIndex(line, []byte("RTSP/"))
	if at < 0 {
		return false
	}
	if status, ok := statusLine(line[at:]); ok {
		m.status = status
		return true
	}
	words := line[:at]
	if len(words) == 0 || words[len(words)-1] != ' ' {
		return false
	}
	words = words[:len(words)-1]
	target := bytes.LastIndexByte(words, ' ')
	if target < 0 {
		return false
	}
	for _, method := range [...]string{
		"SETUP", "TEARDOWN", "PLAY", "PAUSE", "RECORD", "OPTIONS", "DESCRIBE", "ANNOUNCE", "REDIRECT", "GET_PARAMETER",
		"SET_PARAMETER", "PLAY_NOTIFY",
	} {
		if bytes.HasSuffix(words[:target], []byte(method)) {
			return m.start(line[target-len(method):])
		}
	}
	return false
}

const versionSize = len("RTSP/1.0")

// isVersion tells whether b begins with version 1 or 2.
func isVersion(b []byte) bool {
	return len(b) >= versionSize && bytes.HasPrefix(b, []byte("RTSP/")) && (b[5] == '1' || b[5] == '2') && b[6] == '.' &&
		b[7] >= '0' && b[7] <= '9'
}

func statusLine(line []byte) (uint16, bool) {
	const size = versionSize + len(" 200")
	if len(line) < size || !isVersion(line) || line[versionSize] != ' ' || len(line) > size && line[size] != ' ' {
		return 0, false
	}
	status, ok := inspect.Number(line[versionSize+1:size], 999)
	return uint16(status), ok && status >= 100
}

func isMethod(b []byte) bool {
	for _, c := range b {
		if (c < 'A' || c > 'Z') && c != '_' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 32
}

func methodOf(b []byte) inspect.Method {
	switch string(b) {
	case "SETUP":
		return inspect.Setup
	case "TEARDOWN":
		return inspect.Teardown
	}
	return inspect.Other
}

// field takes a line of the head. Its field is read when the next line does not continue it (RFC 7826, 20.2).
func (m *message) field(line inspect.Line, side inspect.Side) {
	if c := line.Text[0]; c == ' ' || c == '\t' {
		if len(m.pending)+len(line.Text) > maxFolded {
			m.seen.broken = true
			return
		}
		m.pending = append(m.pending, line.Text...)
	} else {
		m.flush(side)
		m.pending = append(m.pending[:0], line.Text...)
	}
	if line.Cut {
		// A long field that nobody needs is no fault; half of one that matters would mislead.
		if name, _, _ := inspect.Field(m.pending); matters(name) {
			m.seen.broken = true
		}
		m.pending = m.pending[:0]
	}
}

func matters(name []byte) bool {
	for _, n := range [...]string{"cseq", "session", "transport", "content-length"} {
		if bytes.EqualFold(name, []byte(n)) {
			return true
		}
	}
	return false
}

// flush reads the field that is complete now.
func (m *message) flush(side inspect.Side) {
	name, value, ok := inspect.Field(m.pending)
	m.pending = m.pending[:0]
	if !ok {
		return
	}
	switch {
	case bytes.EqualFold(name, []byte("cseq")):
		n, ok := inspect.Number(value, math.MaxUint32)
		m.seen.broken = m.seen.broken || !ok || m.seen.seq && n != m.seq
		m.seq, m.seen.seq = n, true
	case bytes.EqualFold(name, []byte("content-length")):
		n, ok := inspect.Number(value, math.MaxUint32)
		if !ok || m.seen.body && n != m.body {
			n = math.MaxUint32 // larger than any limit: where the message ends is not known
		}
		m.body, m.seen.body = n, true
	case bytes.EqualFold(name, []byte("session")):
		m.sessionField(value)
	case bytes.EqualFold(name, []byte("transport")):
		m.streams = appendTransports(m.streams, value, side)
	}
}

// sessionField reads Session: an identifier and parameters (RFC 7826, 18.49).
func (m *message) sessionField(value []byte) {
	id, parameters, _ := bytes.Cut(value, []byte(";"))
	m.session = inspect.Name(string(bytes.TrimSpace(id)))
	for len(parameters) > 0 {
		var p []byte
		p, parameters, _ = bytes.Cut(parameters, []byte(";"))
		key, seconds, _ := bytes.Cut(p, []byte("="))
		if bytes.EqualFold(bytes.TrimSpace(key), []byte("timeout")) {
			if n, ok := inspect.Number(bytes.TrimSpace(seconds), maxTimeout); ok {
				m.timeout = time.Duration(n) * time.Second
			}
		}
	}
}

func (m *message) valid() bool { return m.seen.seq && !m.seen.broken }

// half returns what the message is for the other side's. Provisional answers and requests outside a session are nothing.
func (m *message) half() (inspect.Half, bool) {
	if m.status == 0 && m.method == inspect.Other && m.session == "" || m.status != 0 && m.status < 200 {
		return inspect.Half{}, false
	}
	h := inspect.Half{
		Protocol: inspect.RTSP, Method: m.method, Status: m.status, Seq: m.seq,
		Session: m.session, Target: m.target, Timeout: m.timeout,
	}
	if m.method == inspect.Setup || m.status != 0 {
		h.Streams = m.streams
	}
	return h, true
}
