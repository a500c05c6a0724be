// SPDX-License-Identifier: Apache-2.0

package route

import (
	"fmt"
	"strings"
	"testing"
)

// shapes are configurations of 10,000 rules, each with a request that goes the longest way.
func shapes() map[string]struct {
	rules []Rule
	r     Request
} {
	const n = 10_000
	list := func(f func(i int) Rule) []Rule {
		rules := make([]Rule, n)
		for i := range rules {
			rules[i] = f(i)
		}
		return rules
	}
	header := func(string) (string, bool) { return "7777", true }
	return map[string]struct {
		rules []Rule
		r     Request
	}{
		"hosts": {
			list(func(i int) Rule { return Rule{Host: fmt.Sprintf("h%d.example", i), Path: "/", Pool: "p"} }),
			Request{Host: "h7777.Example:80", Path: "/a/b/c.html"},
		},
		"wildcards": {
			list(func(i int) Rule { return Rule{Host: fmt.Sprintf("*.h%d.example", i), Path: "/", Pool: "p"} }),
			Request{Host: "www.shop.eu.h7777.example", Path: "/a/b/c.html"},
		},
		"paths": {
			list(func(i int) Rule {
				return Rule{Host: "example", Path: fmt.Sprintf("/p%d/%s", i, strings.Repeat("a/", i%20)), Pool: "p"}
			}),
			Request{Host: "example", Path: "/p7777/" + strings.Repeat("a/", 17) + "b/c"},
		},
		"cookies": {
			list(func(i int) Rule { return Rule{Cookie: Match{"srv", fmt.Sprint(i)}, Pool: "p"} }),
			Request{Host: "example", Path: "/", Cookie: header},
		},
		"mixed": {
			list(func(i int) Rule {
				r := Rule{Host: fmt.Sprintf("h%d.example", i/10), Path: fmt.Sprintf("/a/%d", i%10), Pool: "p"}
				if i%2 == 0 {
					r.Header = Match{"x-version", "7777"}
				}
				return r
			}),
			Request{Host: "h777.example", Path: "/a/8/index.html", Header: header},
		},
	}
}

// TestLookupAllocates holds that nothing is allocated, whatever the shape.
func TestLookupAllocates(t *testing.T) {
	for name, s := range shapes() {
		table := compile(t, s.rules...)
		if _, ok := table.Lookup(s.r); !ok {
			t.Errorf("%s: no rule fits", name)
		}
		if n := testing.AllocsPerRun(100, func() { table.Lookup(s.r) }); n != 0 {
			t.Errorf("%s: %v allocations per lookup", name, n)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	for name, s := range shapes() {
		table := compile(b, s.rules...)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := table.Lookup(s.r); !ok {
					b.Fatal("no rule fits")
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	for name, s := range shapes() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := Compile(s.rules); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
