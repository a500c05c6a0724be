// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"iter"
	"strings"
)

// Key is what a connection is routed by. Its strings are copies: it outlives the bytes it was read from.
type Key struct {
	Mode Mode
	// Method of the request, as sent.
	Method string
	// Host that the request is for, without port: lower case, without a final dot; an IPv6 address without brackets, in
	// the form of RFC 5952. Empty if the request names none, which only HTTP/1.0 may.
	Host string
	// Path of the request, without query: escapes decoded, except %2F (Config.EncodedSlashes), and empty segments left
	// out, so that "//a///b" is "/a/b". It begins with "/", or is "*".
	Path string
	// Query of the request, as sent, without the question mark.
	Query string
	// SNI is the ClientHello's server name, lower case. Empty if it has none.
	SNI string
	// ALPN lists the protocols that the client offers, in its order of preference.
	ALPN []string
	// TLSVersion is the highest version that the client offers, as in crypto/tls; GREASE left out.
	TLSVersion uint16
	// ECH is set when the ClientHello carries another one encrypted; SNI and ALPN are the outer one's then.
	ECH bool
	// Proxy is the PROXY protocol header; its Len is 0 if there was none.
	Proxy ProxyHeader
	// Len counts the bytes from the connection's start that the key was read from: PROXY protocol header and head,
	// records of the ClientHello, or frames. More may have come.
	Len int

	lines  string // field lines, each ended by CRLF
	stream uint32 // HTTP/2: the request's
}

// Header returns the value of the first field of that name, in any case.
func (k *Key) Header(name string) (string, bool) {
	for n, v := range k.Fields() {
		if equalFold(n, name) {
			return v, true
		}
	}
	return "", false
}

// Cookie returns the value of the first cookie of that name, which is case-sensitive, among all Cookie fields. Quotes around
// the value belong to it.
func (k *Key) Cookie(name string) (string, bool) {
	for n, v := range k.Fields() {
		if !equalFold(n, "cookie") {
			continue
		}
		for v != "" {
			var pair string
			pair, v, _ = strings.Cut(v, ";")
			if n, value, ok := strings.Cut(pair, "="); ok && trim(n) == name {
				return trim(value), true
			}
		}
	}
	return "", false
}

// Fields yields name and value of the request's fields in their order. HTTP/1 names are as sent, HTTP/2 names
// lower case, without the pseudo-header fields.
func (k *Key) Fields() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		var line string
		for rest := k.lines; rest != ""; {
			line, rest, _ = strings.Cut(rest, "\r\n")
			name, value, _ := strings.Cut(line, ":")
			if !yield(name, trim(value)) {
				return
			}
		}
	}
}
