// SPDX-License-Identifier: Apache-2.0

package route

import (
	"slices"
	"strings"
)

// group has the rules of one name and one path; the first of the list that fits decides.
type group struct {
	// probes are in the order of their first rules.
	probes []*probe
}

// probe has the rules of a group that look at the same things, so that a thousand rules on the value of one cookie
// are one question.
type probe struct {
	sign
	// first is the place of its first rule.
	first int
	// hits are the rules by the values they ask for.
	hits map[values]hit
}

// sign says what a rule looks at besides name and path.
type sign struct {
	header, cookie       string // names; empty: not looked at
	anyHeader, anyCookie bool   // presence is enough
	alpn                 string
}

// values are the header's and the cookie's; empty where none is asked for.
type values struct{ header, cookie string }

// hit is a rule: its place in the list, and its pool.
type hit struct {
	order int
	pool  string
}

func signOf(r Rule) sign {
	return sign{
		header: strings.ToLower(r.Header.Name), anyHeader: r.Header.Name != "" && r.Header.Value == "",
		cookie: r.Cookie.Name, anyCookie: r.Cookie.Name != "" && r.Cookie.Value == "",
		alpn: r.ALPN,
	}
}

// add takes in the rule at place order of the list, unless a rule that is there fits whenever this one does: then it
// returns that one's place and false. Rules come in the order of the list.
func (g *group) add(r Rule, order int) (by int, ok bool) {
	if h, found := g.find(weakest(r)); found {
		return h.order, false
	}
	s := signOf(r)
	i := slices.IndexFunc(g.probes, func(p *probe) bool { return p.sign == s })
	if i < 0 {
		i = len(g.probes)
		g.probes = append(g.probes, &probe{sign: s, first: order, hits: make(map[values]hit)})
	}
	g.probes[i].hits[values{r.Header.Value, r.Cookie.Value}] = hit{order, r.Pool}
	return 0, true
}

// weakest returns a request that fits the rule and shows nothing that the rule does not ask for: what fits it, too, fits
// whenever the rule does.
func weakest(r Rule) *Request {
	// Where any value will do, the request has one that no rule can ask for.
	show := func(m Match) func(string) (string, bool) {
		value := m.Value
		if value == "" {
			value = "\x00"
		}
		return func(name string) (string, bool) { return value, m.Name != "" && m.Name == name }
	}
	r.Header.Name = strings.ToLower(r.Header.Name)
	w := &Request{Header: show(r.Header), Cookie: show(r.Cookie)}
	if r.ALPN != "" {
		w.ALPN = []string{r.ALPN}
	}
	return w
}

// find returns the first rule of the list that fits.
func (g *group) find(r *Request) (hit, bool) {
	var best hit
	found := false
	for _, p := range g.probes {
		if found && p.first > best.order {
			break
		}
		if h, ok := p.find(r); ok && (!found || h.order < best.order) {
			best, found = h, true
		}
	}
	return best, found
}

// find returns the probe's rule for the request's values.
func (p *probe) find(r *Request) (hit, bool) {
	if p.alpn != "" && !slices.Contains(r.ALPN, p.alpn) {
		return hit{}, false
	}
	var v values
	var ok bool
	if p.header != "" {
		if v.header, ok = r.header(p.header); !ok {
			return hit{}, false
		}
		if p.anyHeader {
			v.header = ""
		}
	}
	if p.cookie != "" {
		if v.cookie, ok = r.cookie(p.cookie); !ok {
			return hit{}, false
		}
		if p.anyCookie {
			v.cookie = ""
		}
	}
	h, ok := p.hits[v]
	return h, ok
}
