// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"strings"
)

// maxMethod bounds a method's name; the longest registered one has 17 letters.
const maxMethod = 32

// http1 reads the head of an HTTP/1 request (RFC 9112, 2 to 5). A line is checked once, when its end has come.
func (p *Parser) http1(g *Progress, b []byte, k *Key) Reason {
	if g.stage == stageBegin {
		if r := g.beginHTTP(b); r != accepted {
			return r
		}
		g.stage = stageLine
	}
	for {
		line, r := g.line(b)
		if r != accepted {
			return r
		}
		switch {
		case g.stage == stageLine:
			r = checkRequestLine(line)
		case len(line) == 0:
			return p.headRead(g, b, k)
		default:
			r = p.checkField(g, line)
		}
		if r != accepted {
			return r
		}
		g.stage = stageFields
		g.off += int32(len(line)) + 2
		g.scan = g.off
	}
}

// beginHTTP looks at the first bytes while the request line is incomplete, so that a client that speaks
// something else is told at once.
func (g *Progress) beginHTTP(b []byte) Reason {
	if at := b[g.off:]; !g.crlf && len(at) > 0 && at[0] == '\r' {
		// One empty line in front is to be ignored (RFC 9112, 2.2).
		switch {
		case len(at) == 1:
			return incomplete
		case at[1] != '\n':
			return ControlCharacter
		}
		g.crlf = true
		g.off += 2
	}
	at := b[g.off:]
	if len(at) == 0 {
		return incomplete
	}
	switch at[0] {
	case '\n':
		return BareLF
	case recordHandshake:
		return SpeaksTLS
	}
	for i, c := range at {
		switch {
		case c == ' ' && i > 0:
			g.start, g.scan = g.off, g.off+int32(i)
			return accepted
		case i == maxMethod || !isToken(c):
			return MethodMalformed
		}
	}
	return incomplete
}

// line returns the line at g.off without its CRLF.
func (g *Progress) line(b []byte) ([]byte, Reason) {
	n := bytes.IndexByte(b[g.scan:], '\n')
	if n < 0 {
		g.scan = int32(len(b))
		return nil, incomplete
	}
	line := b[g.off : int(g.scan)+n]
	if len(line) == 0 || line[len(line)-1] != '\r' {
		return nil, BareLF
	}
	return line[:len(line)-1], accepted
}

func checkRequestLine(line []byte) Reason {
	for _, c := range line {
		if isControl(c) {
			return ControlCharacter
		}
	}
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	switch {
	case string(line) == "PRI * HTTP/2.0":
		return SpeaksHTTP2
	case string(method) == "PROXY":
		return SpeaksProxy
	case string(method) == "CONNECT":
		return MethodMalformed // a dispatcher stands before servers, not before proxies
	case len(target) == 0:
		return TargetMalformed
	case string(version) != "HTTP/1.1" && string(version) != "HTTP/1.0":
		return VersionUnknown
	}
	return accepted
}

func (p *Parser) checkField(g *Progress, line []byte) Reason {
	if line[0] == ' ' || line[0] == '\t' {
		return FoldedField
	}
	colon := 0
	for colon < len(line) && isToken(line[colon]) {
		colon++
	}
	switch {
	case colon == 0 || colon == len(line) || line[colon] != ':':
		return FieldMalformed
	case hasControl(line[colon:]):
		return ControlCharacter
	case int(g.fields) == p.cfg.Limits.Fields:
		return TooManyFields
	}
	if equalFold(line[:colon], "host") {
		if g.host != [2]int32{} {
			return HostRepeated
		}
		g.host = [2]int32{g.off + int32(colon) + 1, g.off + int32(len(line))}
	}
	g.fields++
	return accepted
}

// headRead makes the key of a head whose lines have all been checked; g.off is at the empty line.
func (p *Parser) headRead(g *Progress, b []byte, k *Key) Reason {
	head := string(b[g.start:g.off])
	line, lines, _ := strings.Cut(head, "\r\n")
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	host := ""
	if g.host != [2]int32{} {
		host = trim(head[g.host[0]-g.start : g.host[1]-g.start])
	} else if version != "HTTP/1.0" {
		return HostMissing
	}
	k.Method, k.lines, k.Len = method, lines, int(g.off)+2
	return p.place(k, target, host, g.host != [2]int32{})
}

// place finds host and path of a request. Servers ignore Host when the target has an authority (RFC 9112, 3.2.2), but not
// all of them; so both have to be the same.
func (p *Parser) place(k *Key, target, host string, named bool) Reason {
	authority, path, query, r := splitTarget(k.Method, target)
	if r != accepted {
		return r
	}
	if named {
		if k.Host, r = parseHost(host); r != accepted {
			return r
		}
	}
	if authority != "" {
		h, r := parseHost(authority)
		if r != accepted {
			return r
		}
		if named && h != k.Host {
			return HostContradicts
		}
		k.Host = h
	}
	k.Query = query
	k.Path, r = cleanPath(path, p.cfg.EncodedSlashes)
	return r
}
