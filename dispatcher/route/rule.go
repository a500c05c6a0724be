// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"strings"
)

// Limits of a rule's conditions.
const (
	maxPath  = 4096
	maxValue = 4096
	maxALPN  = 255 // RFC 7301, section 3.1
)

// Rule is one route. The package comment says what its conditions mean; an empty one is none.
type Rule struct {
	// Host is the request's host: a name, *.name or an address, without port.
	Host string
	// Path is a prefix of the request's path, in which nothing is escaped but %2F.
	Path string
	// Header and Cookie are conditions on one header, one cookie.
	Header, Cookie Match
	// SNI is the server name in the ClientHello: a name or *.name.
	SNI string
	// ALPN is a protocol that the client offers.
	ALPN string
	// Pool is where the connection goes.
	Pool string
}

// Match is a condition on something with a name and a value. The zero Match is no condition, an empty Value any value.
type Match struct {
	Name, Value string
}

// RuleError says which rule cannot be used, and why. Compile joins one for each.
type RuleError struct {
	// Index is the rule's place in the list, from 0.
	Index int
	// Key is the condition that is wrong, "host" for instance; empty when it is the rule as a whole.
	Key string
	// Err says what is wrong and what to do.
	Err error
}

// Error names the rule, the key and the reason.
func (e *RuleError) Error() string {
	if e.Key == "" {
		return fmt.Sprintf("routes[%d]: %v", e.Index, e.Err)
	}
	return fmt.Sprintf("routes[%d]: %s: %v", e.Index, e.Key, e.Err)
}

// Unwrap returns the reason.
func (e *RuleError) Unwrap() error { return e.Err }

// ErrNeverChosen is in the error about a rule that an earlier one makes useless.
var ErrNeverChosen = errors.New("never chosen")

// check returns what is wrong with the rule by itself: the key and the reason.
func (r Rule) check() (string, error) {
	if r.Host != "" && r.SNI != "" {
		return "sni", errors.New("stands beside host: a first request never shows both")
	}
	if r.Host != "" {
		if _, _, err := ruleName(r.Host); err != nil {
			return "host", err
		}
	}
	if r.SNI != "" {
		if strings.Contains(r.SNI, ":") {
			return "sni", fmt.Errorf("%q: neither a port nor an address is ever sent as server name (RFC 6066, section 3)", r.SNI)
		}
		if _, _, err := ruleName(r.SNI); err != nil {
			return "sni", err
		}
	}
	if err := checkPath(r.Path); err != nil {
		return "path", err
	}
	if err := r.Header.check(); err != nil {
		return "header", err
	}
	if err := r.Cookie.check(); err != nil {
		return "cookie", err
	}
	if len(r.ALPN) > maxALPN {
		return "alpn", fmt.Errorf("%d bytes long, at most %d", len(r.ALPN), maxALPN)
	}
	if r.Pool == "" {
		return "pool", errors.New("missing: name the pool that serves it")
	}
	return "", nil
}

func checkPath(path string) error {
	switch {
	case path == "":
		return nil
	case path[0] != '/':
		return fmt.Errorf("%q: want a prefix that begins with /", path)
	case len(path) > maxPath:
		return fmt.Errorf("%d bytes long, at most %d", len(path), maxPath)
	case strings.ContainsAny(path, "?#"):
		return fmt.Errorf("%q: leave out the query: routes look at the path alone", path)
	case strings.Contains(path, "//"):
		return fmt.Errorf("%q: write one slash: empty segments are left out of requests' paths", path)
	case strings.ContainsFunc(path, func(c rune) bool { return c < ' ' || c == 0x7f }):
		return fmt.Errorf("%q: has a control character", path)
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return fmt.Errorf("%q: has a dot segment, which no request's path has", path)
		}
	}
	return checkEscapes(path)
}

// checkEscapes finds escapes that stand decoded in requests' paths.
func checkEscapes(path string) error {
	for rest := path; ; {
		_, after, found := strings.Cut(rest, "%")
		if !found {
			return nil
		}
		if len(after) >= 2 && isHex(after[0]) && isHex(after[1]) && after[:2] != "2F" {
			return fmt.Errorf("%q: write %%%s as the character it stands for: requests' paths are compared decoded, %%2F alone stays", path, after[:2])
		}
		rest = after
	}
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func (m Match) check() error {
	switch {
	case m.Name == "" && m.Value != "":
		return errors.New("name: missing")
	case strings.ContainsFunc(m.Name, func(c rune) bool { return !isToken(c) }):
		return fmt.Errorf("name: %q: want letters, digits and hyphens (RFC 9110, section 5.6.2)", m.Name)
	case len(m.Name) > maxValue || len(m.Value) > maxValue:
		return fmt.Errorf("longer than %d bytes", maxValue)
	case strings.ContainsAny(m.Value, "\r\n\x00"):
		return fmt.Errorf("value: %q: a line's end never stands in a value", m.Value)
	case strings.Trim(m.Value, " \t") != m.Value:
		return fmt.Errorf("value: %q: remove the space around it: parsers do", m.Value)
	}
	return nil
}

// isToken reports whether c may stand in a field's or cookie's name.
func isToken(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", c)
}
