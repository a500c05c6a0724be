// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"bytes"
	"strconv"
	"strings"
)

const (
	// maxHeadLine bounds a line of a request's head, or of a chunk's; longer ones lose the scanner.
	maxHeadLine = 8 << 10
	maxHeadSize = 1 << 20
)

// requestScanner follows the requests of an HTTP/1 connection (RFC 9112) by their framing alone, to tell where one
// ends. Whatever is unusual, or that servers are known to understand differently, loses it for good: it must never
// see an end where the server sees none. The zero value stands before the first request.
//
//	         ┌───────────── no body ─────────────┐
//	         ▼                                   │
//	► requestLine ─► header ─┬─ Content-Length ► body ──────────────► requestLine
//	                         └─ chunked ► chunkSize ⇄ chunkData, chunkEnd
//	                                          └─ 0 ► trailer ───────► requestLine
type requestScanner struct {
	state    scanState
	line     []byte // the line begun
	head     int    // bytes of this head, or trailer, so far
	left     uint64 // bytes of the body, or of the chunk, still to come
	length   uint64
	sized    bool // Content-Length was seen
	chunked  bool
	old      bool   // HTTP/1.0
	count    uint64 // requests that have ended
	fraction bool   // a request has begun and not ended
}

type scanState uint8

const (
	scanRequestLine scanState = iota
	scanHeader
	scanBody
	scanChunkSize
	scanChunkData
	scanChunkEnd
	scanTrailer
	scanLost
)

// lost reports whether the scanner has given up.
func (s *requestScanner) lost() bool { return s.state == scanLost }

// atBoundary reports whether every byte seen belongs to a request that has ended.
func (s *requestScanner) atBoundary() bool { return s.state == scanRequestLine && !s.fraction }

// advance takes the next bytes of the connection.
func (s *requestScanner) advance(b []byte) {
	for len(b) > 0 && s.state != scanLost {
		s.fraction = true
		if s.state == scanBody || s.state == scanChunkData {
			n := min(uint64(len(b)), s.left)
			b = b[n:]
			if s.left -= n; s.left == 0 {
				s.bodyRead()
			}
			continue
		}
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			s.line = append(s.line, b...)
			if len(s.line) > maxHeadLine {
				s.give()
			}
			return
		}
		s.line = append(s.line, b[:i+1]...)
		b = b[i+1:]
		s.endLine()
	}
}

// give gives up.
func (s *requestScanner) give() {
	s.state, s.line = scanLost, nil
}

func (s *requestScanner) bodyRead() {
	if s.state == scanBody {
		s.endRequest()
		return
	}
	s.state = scanChunkEnd
}

func (s *requestScanner) endRequest() {
	*s = requestScanner{line: s.line[:0], count: s.count + 1}
}

// endLine interprets s.line, which is complete.
func (s *requestScanner) endLine() {
	s.head += len(s.line)
	// A line ended by LF alone is legal to accept (RFC 9112, 2.2), but not everybody does.
	line, ok := bytes.CutSuffix(s.line, []byte("\r\n"))
	if !ok || len(line) > maxHeadLine || s.head > maxHeadSize || bytes.ContainsAny(line, "\r\x00") {
		s.give()
		return
	}
	switch s.state {
	case scanRequestLine:
		s.requestLine(string(line))
	case scanHeader:
		s.header(line)
	case scanChunkSize:
		s.chunkSize(string(line))
	case scanChunkEnd:
		s.next(scanChunkSize, len(line) == 0)
	case scanTrailer:
		if len(line) == 0 {
			s.endRequest()
		}
	}
	s.line = s.line[:0]
}

// next goes on to state, or gives up unless ok.
func (s *requestScanner) next(state scanState, ok bool) {
	if !ok {
		s.give()
		return
	}
	s.state = state
}

func (s *requestScanner) requestLine(line string) {
	method, rest, _ := strings.Cut(line, " ")
	_, version, ok := strings.Cut(rest, " ")
	s.old = version == "HTTP/1.0"
	// After CONNECT, and after HTTP/2's preface (method PRI), another protocol follows.
	s.next(scanHeader, ok && method != "" && method != "CONNECT" && method != "PRI" && (s.old || version == "HTTP/1.1"))
}

func (s *requestScanner) header(line []byte) {
	if len(line) == 0 {
		s.endHead()
		return
	}
	name, value, ok := strings.Cut(string(line), ":")
	// Neither space before the colon nor a folded line: both have been used to smuggle requests.
	if !ok || name == "" || strings.ContainsAny(name, " \t") {
		s.give()
		return
	}
	value = strings.Trim(value, " \t")
	switch strings.ToLower(name) {
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 62)
		if err != nil || s.sized || value[0] == '+' {
			s.give()
			return
		}
		s.length, s.sized = n, true
	case "transfer-encoding":
		if s.chunked || !strings.EqualFold(value, "chunked") {
			s.give()
			return
		}
		s.chunked = true
	case "upgrade":
		s.give()
	}
}

func (s *requestScanner) endHead() {
	s.head = 0
	switch {
	case s.chunked && (s.sized || s.old):
		s.give()
	case s.chunked:
		s.state = scanChunkSize
	case s.length > 0:
		s.state, s.left = scanBody, s.length
	default:
		s.endRequest()
	}
}

func (s *requestScanner) chunkSize(line string) {
	s.head = 0
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.Trim(size, " \t"), 16, 62)
	switch {
	case err != nil:
		s.give()
	case n == 0:
		s.state = scanTrailer
	default:
		s.state, s.left = scanChunkData, n
	}
}
