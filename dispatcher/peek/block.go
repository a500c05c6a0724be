// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"errors"
	"strings"

	"golang.org/x/net/http2/hpack"
)

const (
	// hpackTable is the dynamic table's size until the server's SETTINGS say otherwise (RFC 9113, 6.5.2).
	hpackTable = 4096
	// fieldOverhead is what a field counts beyond its octets (RFC 7541, 4.1).
	fieldOverhead = 32
)

// block decodes the field block of the HEADERS frame in b[g.start:] and of the CONTINUATION frames behind, all complete.
func (p *Parser) block(g *Progress, b []byte, k *Key) Reason {
	start := g.start
	if g.stage != stageBlock {
		start = g.off
	}
	q := request{limits: p.cfg.Limits}
	decoder := hpack.NewDecoder(hpackTable, nil)
	decoder.SetMaxStringLength(p.cfg.Limits.Decoded)
	decoder.SetEmitFunc(func(f hpack.HeaderField) {
		if q.reason = q.add(f); q.reason != accepted {
			decoder.SetEmitEnabled(false)
		}
	})
	for at := int(start); at+frameHeader <= len(b); {
		f := parseFrame(b[at:])
		end := min(at+frameHeader+f.length, len(b))
		fragment, ok := fragmentOf(f, b[at+frameHeader:end])
		if !ok {
			return FrameMalformed
		}
		if _, err := decoder.Write(fragment); err != nil {
			if errors.Is(err, hpack.ErrStringLength) {
				return q.failed(TooLarge)
			}
			return q.failed(BlockMalformed)
		}
		if q.reason != accepted {
			return q.reason
		}
		at = end
	}
	if err := decoder.Close(); err != nil {
		return q.failed(BlockMalformed)
	}
	if r := q.complete(); r != accepted {
		return r
	}
	k.Method, k.lines = q.method, q.lines.String()
	return p.placeHTTP2(k, &q)
}

// fragmentOf takes padding and priority off a HEADERS frame's content (RFC 9113, 6.2).
func fragmentOf(f frame, content []byte) ([]byte, bool) {
	if f.kind != frameHeaders {
		return content, true
	}
	r := reader{rest: content}
	padding := 0
	if f.has(flagPadded) {
		padding = int(r.uint8())
	}
	if f.has(flagPriority) {
		r.take(5)
	}
	if r.short || padding > len(r.rest) {
		return nil, false
	}
	return r.rest[:len(r.rest)-padding], true
}

// request collects the fields of an HTTP/2 request (RFC 9113, 8.2 and 8.3).
type request struct {
	limits Limits
	reason Reason

	method, scheme, authority, path, host string
	named, regular                        bool
	count, size                           int
	lines                                 strings.Builder
}

// failed prefers what was found wrong with a field to the decoder's error, which may follow from it.
func (q *request) failed(r Reason) Reason {
	if q.reason != accepted {
		return q.reason
	}
	return r
}

func (q *request) add(f hpack.HeaderField) Reason {
	q.count++
	q.size += len(f.Name) + len(f.Value) + fieldOverhead
	switch {
	case q.size > q.limits.Decoded:
		return TooLarge
	case q.count > q.limits.Fields:
		return TooManyFields
	case hasControl(f.Value):
		return ControlCharacter
	case f.IsPseudo():
		return q.addPseudo(f)
	}
	q.regular = true
	if f.Name == "" {
		return FieldMalformed
	}
	// White space around a value is malformed (RFC 9113, 8.2.1), but net/http sends it and servers take it. Key.Fields
	// trims it, and parseHost takes none.
	for i := range len(f.Name) {
		if !isToken(f.Name[i]) || lower(f.Name[i]) != f.Name[i] {
			return FieldMalformed
		}
	}
	if f.Name == "host" {
		if q.named {
			return HostRepeated
		}
		q.named, q.host = true, f.Value
	}
	q.lines.WriteString(f.Name)
	q.lines.WriteString(": ")
	q.lines.WriteString(f.Value)
	q.lines.WriteString("\r\n")
	return accepted
}

func (q *request) addPseudo(f hpack.HeaderField) Reason {
	var value *string
	switch f.Name {
	case ":method":
		value = &q.method
	case ":scheme":
		value = &q.scheme
	case ":authority":
		value = &q.authority
	case ":path":
		value = &q.path
	default:
		return PseudoMalformed
	}
	if q.regular || *value != "" || f.Value == "" {
		return PseudoMalformed
	}
	*value = f.Value
	return accepted
}

// complete checks that the request has what it must have. CONNECT has no :path and is left to proxies, as in HTTP/1.
func (q *request) complete() Reason {
	if q.method == "CONNECT" || len(q.method) > maxMethod {
		return MethodMalformed
	}
	for i := range len(q.method) {
		if !isToken(q.method[i]) {
			return MethodMalformed
		}
	}
	switch {
	case q.method == "" || q.scheme == "" || q.path == "":
		return PseudoMalformed
	case q.path[0] != '/' && q.path != "*" || strings.ContainsAny(q.path, " \t"):
		return TargetMalformed
	case q.authority == "" && !q.named:
		return HostMissing
	}
	return accepted
}

// placeHTTP2 finds host and path. Servers prefer :authority; Host must not contradict it (RFC 9113, 8.3.1).
func (p *Parser) placeHTTP2(k *Key, q *request) Reason {
	host, named := q.authority, q.authority != ""
	if !named {
		host = q.host
	} else if q.named {
		h, r := parseHost(q.host)
		if r != accepted {
			return r
		}
		if a, _ := parseHost(host); a != h {
			return HostContradicts
		}
	}
	return p.place(k, q.path, host, true)
}
