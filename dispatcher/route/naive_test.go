// SPDX-License-Identifier: Apache-2.0

package route

import (
	"cmp"
	"slices"
	"strings"
)

// naive is the package comment in its plainest form: sort the rules that fit, take the first.
type naive []Rule

func (rules naive) lookup(r Request) (string, bool) {
	bySNI := slices.ContainsFunc(rules, func(r Rule) bool { return r.SNI != "" })
	type candidate struct{ name, path, order int }
	var fit []candidate
	for i, rule := range rules {
		pattern, name := rule.Host, r.Host
		if bySNI {
			pattern, name = rule.SNI, r.SNI
		}
		specific, ok := naiveName(pattern, name)
		if ok && naivePath(rule.Path, r.Path) && naiveMatch(rule.Header, r.header, true) && naiveMatch(rule.Cookie, r.cookie, false) &&
			(rule.ALPN == "" || slices.Contains(r.ALPN, rule.ALPN)) {
			fit = append(fit, candidate{specific, len(rule.Path), i})
		}
	}
	if len(fit) == 0 {
		return "", false
	}
	best := slices.MinFunc(fit, func(a, b candidate) int {
		return cmp.Or(b.name-a.name, b.path-a.path, a.order-b.order)
	})
	return rules[best.order].Pool, true
}

// naiveName reports whether the name fits the pattern, and how specific the pattern is.
func naiveName(pattern, name string) (int, bool) {
	if pattern == "" {
		return 0, true
	}
	if strings.HasPrefix(name, "[") {
		var closed bool
		if name, _, closed = strings.Cut(name[1:], "]"); !closed {
			return 0, false
		}
	} else if strings.Count(name, ":") == 1 {
		name, _, _ = strings.Cut(name, ":")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	pattern = strings.ToLower(strings.TrimSuffix(strings.Trim(pattern, "[]"), "."))
	if len(name) > maxName {
		return 0, false
	}
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return len(suffix), len(name) > len(suffix) && strings.HasSuffix(name, suffix)
	}
	return 1000, name == pattern
}

func naivePath(prefix, path string) bool {
	if prefix == "" || path == prefix {
		return true
	}
	return strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

func naiveMatch(m Match, get func(string) (string, bool), fold bool) bool {
	if m.Name == "" {
		return true
	}
	if fold {
		m.Name = strings.ToLower(m.Name)
	}
	v, ok := get(m.Name)
	return ok && (m.Value == "" || v == m.Value)
}
