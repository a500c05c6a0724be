// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"slices"
)

// Table finds the rule for a request. It does not change and may be used concurrently. The zero Table has no rules.
type Table struct {
	// bySNI says which of a request's names is looked at: a table uses one of them.
	bySNI bool
	// exact and wild are keyed by the name as appendName writes it; wild by what follows "*.".
	exact, wild map[string]*node
	// unnamed has the rules without a name.
	unnamed *node
	// groups has all rules, by name and path.
	groups map[place]*group
}

// node stands for one name (or wildcard, or none) that rules have.
type node struct {
	id int
	// lengths are the distinct lengths of its rules' paths, longest first. A path is looked up once for each length at which
	// a segment of it ends, so a client's path of ten thousand slashes costs no more than the configuration allows.
	lengths []int
}

// place is where a group of rules stands.
type place struct {
	node int
	path string
}

// Compile makes a table of rules, or says which ones cannot be used: a join of *RuleError.
func Compile(rules []Rule) (*Table, error) {
	t := &Table{
		exact:  make(map[string]*node),
		wild:   make(map[string]*node),
		groups: make(map[place]*group),
	}
	t.bySNI = slices.ContainsFunc(rules, func(r Rule) bool { return r.SNI != "" })
	var errs []error
	nodes := 0
	for i, r := range rules {
		key, err := r.check()
		if err == nil && t.bySNI && r.Host != "" {
			key, err = "host", errors.New("another route has sni: a first request never shows both")
		}
		if err != nil {
			errs = append(errs, &RuleError{Index: i, Key: key, Err: err})
			continue
		}
		n := t.node(r, &nodes)
		g := t.groups[place{n.id, r.Path}]
		if g == nil {
			g = &group{}
			t.groups[place{n.id, r.Path}] = g
			n.addLength(len(r.Path))
		}
		if by, ok := g.add(r, i); !ok {
			errs = append(errs, &RuleError{Index: i, Err: fmt.Errorf(
				"%w: routes[%d] comes first and takes all it would: remove it or put it before", ErrNeverChosen, by)})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return t, nil
}

// node returns the node of the rule's name, which is new if need be.
func (t *Table) node(r Rule, nodes *int) *node {
	fresh := func() *node {
		*nodes++
		return &node{id: *nodes}
	}
	text := r.Host + r.SNI // one of them is empty
	if text == "" {
		if t.unnamed == nil {
			t.unnamed = fresh()
		}
		return t.unnamed
	}
	name, wildcard, _ := ruleName(text) // checked before
	in := t.exact
	if wildcard {
		in = t.wild
	}
	n := in[name]
	if n == nil {
		n = fresh()
		in[name] = n
	}
	return n
}

func (n *node) addLength(l int) {
	i, found := slices.BinarySearchFunc(n.lengths, l, func(have, want int) int { return want - have })
	if !found {
		n.lengths = slices.Insert(n.lengths, i, l)
	}
}

// Lookup returns the pool of the rule that decides, or false when none fits. It allocates nothing.
func (t *Table) Lookup(r Request) (pool string, ok bool) {
	host := r.Host
	if t.bySNI {
		host = r.SNI
	}
	var buf [maxName]byte
	name := appendName(buf[:0], host)
	if n := t.exact[string(name)]; n != nil {
		if pool, ok := t.find(n, &r); ok {
			return pool, true
		}
	}
	if len(t.wild) > 0 {
		// From the left: the first suffix is the longest.
		for i := 1; i < len(name); i++ {
			if name[i] != '.' {
				continue
			}
			if n := t.wild[string(name[i+1:])]; n != nil {
				if pool, ok := t.find(n, &r); ok {
					return pool, true
				}
			}
		}
	}
	if t.unnamed != nil {
		return t.find(t.unnamed, &r)
	}
	return "", false
}

// find returns the pool of the deciding rule among those of one name.
func (t *Table) find(n *node, r *Request) (string, bool) {
	for _, l := range n.lengths {
		if !endsSegment(r.Path, l) {
			continue
		}
		if g := t.groups[place{n.id, r.Path[:l]}]; g != nil {
			if h, ok := g.find(r); ok {
				return h.pool, true
			}
		}
	}
	return "", false
}

// endsSegment reports whether a rule's path may end after the first l bytes of path.
func endsSegment(path string, l int) bool {
	switch {
	case l == 0:
		return true
	case l > len(path):
		return false
	}
	return l == len(path) || path[l-1] == '/' || path[l] == '/'
}
