// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"strings"

	"github.com/rehome-net/rehome/dispatcher/balance"
	"github.com/rehome-net/rehome/dispatcher/peek"
	"github.com/rehome-net/rehome/tcprepair"
)

// visit returns what a connection's first request shows of the backend where it belongs.
func (p *pool) visit(f tcprepair.Flow, key *peek.Key) balance.Visit {
	if p.sticky == nil {
		if p.cfg.Hash == "" {
			return balance.Visit{}
		}
		return balance.Visit{Key: p.hash(f, key)}
	}
	client := balance.KeyAddr(f.Remote.Addr())
	by, name := p.cfg.StickyBy()
	if by == StickyClient {
		return balance.Visit{Key: client}
	}
	value, ok := key.Cookie(name)
	if !ok && by == StickySession {
		value, ok = identifier(key, name)
	}
	if !ok || value == "" {
		return balance.Visit{Keyless: true, Client: client}
	}
	return balance.Visit{Key: balance.Key(value), Client: client, Backend: p.named(value)}
}

// identifier returns a session's identifier that is in a request's target: a parameter of the path (";NAME=" behind a segment, RFC 3986 section
// 3.3), else of the query. The path's is compared as package peek leaves it, its escapes decoded, so that one value written in two ways is one; the
// query's as sent: who wrote it writes it again in the same way.
func identifier(key *peek.Key, name string) (value string, ok bool) {
	for _, list := range []struct{ text, separator string }{{key.Path, ";"}, {key.Query, "&"}} {
		for part := range strings.SplitSeq(list.text, list.separator) {
			if n, v, found := strings.Cut(part, "="); found && n == name {
				v, _, _ = strings.Cut(v, "/")
				return v, true
			}
		}
	}
	return "", false
}

// named returns the name of the backend that a cookie's value names, empty if it names none.
func (p *pool) named(value string) string {
	value = strings.Trim(value, `"`)
	route := value[strings.LastIndexByte(value, '.')+1:]
	for i, b := range p.cfg.Backends {
		if v := b.value(); v == value || v == route {
			return p.members[i].name
		}
	}
	return ""
}

// hash returns what consistent hashing goes by.
func (p *pool) hash(f tcprepair.Flow, key *peek.Key) uint64 {
	source, name := p.cfg.HashBy()
	value, ok := "", false
	switch source {
	case HashHost:
		if value = key.Host; value == "" {
			value = key.SNI
		}
		ok = value != ""
	case HashPath:
		value, ok = key.Path, key.Path != ""
	case HashHeader:
		value, ok = key.Header(name)
	case HashCookie:
		value, ok = key.Cookie(name)
	}
	if !ok {
		return balance.KeyAddr(f.Remote.Addr())
	}
	return balance.Key(value)
}
