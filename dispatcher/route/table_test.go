// SPDX-License-Identifier: Apache-2.0

package route

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// from makes a lookup function of a map.
func from(m map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { v, ok := m[name]; return v, ok }
}

func compile(t testing.TB, rules ...Rule) *Table {
	t.Helper()
	table, err := Compile(rules)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestLookup(t *testing.T) {
	web := []Rule{
		0:  {Host: "shop.example", Path: "/static/", Pool: "static"},
		1:  {Host: "shop.example", Path: "/api", Pool: "api"},
		2:  {Host: "shop.example", Path: "/api", Pool: "never"}, // replaced below
		3:  {Host: "*.example", Header: Match{"X-Beta", "1"}, Pool: "beta"},
		4:  {Host: "*.example", Path: "/deep/path/", Pool: "deep"},
		5:  {Host: "*.eu.example", Pool: "eu"},
		6:  {Cookie: Match{"srv", "b2"}, Pool: "two"},
		7:  {Cookie: Match{Name: "srv"}, Pool: "sticky"},
		8:  {Host: "[2001:DB8::1]", Pool: "v6"},
		9:  {Host: "192.0.2.1", Pool: "v4"},
		10: {Path: "/", Header: Match{"x-kind", "a"}, Cookie: Match{"c", "d"}, Pool: "both"},
	}
	web[2] = Rule{Host: "shop.example", Path: "/api", Header: Match{"x", "y"}, Pool: "x"}
	web[1], web[2] = web[2], web[1]
	tls := []Rule{
		{SNI: "*.secure.example", ALPN: "h2", Pool: "h2"},
		{SNI: "*.secure.example", Pool: "secure"},
		{ALPN: "acme-tls/1", Pool: "acme"},
	}
	for _, tt := range []struct {
		name  string
		rules []Rule
		r     Request
		want  string // empty: none fits
	}{
		{"exact host and path", web, Request{Host: "shop.example", Path: "/static/a.css"}, "static"},
		{"the directory itself", web, Request{Host: "shop.example", Path: "/static/"}, "static"},
		{"without its slash", web, Request{Host: "shop.example", Path: "/static"}, ""},
		{"a prefix without slash", web, Request{Host: "shop.example", Path: "/api"}, "api"},
		{"and below", web, Request{Host: "shop.example", Path: "/api/v1"}, "api"},
		{"a question mark that was escaped", web, Request{Host: "shop.example", Path: "/api?v"}, ""},
		{"not within a segment", web, Request{Host: "shop.example", Path: "/apis"}, ""},
		{"order within host and path", web, Request{Host: "shop.example", Path: "/api", Header: from(map[string]string{"x": "y"})}, "x"},
		{"case, port, dot", web, Request{Host: "SHOP.Example.:8080", Path: "/api"}, "api"},
		{"the less specific host when the exact one's path does not fit", web, Request{Host: "shop.example", Path: "/deep/path/x"}, "deep"},
		{"wildcard with header", web, Request{Host: "a.b.example", Path: "/", Header: from(map[string]string{"x-beta": "1"})}, "beta"},
		{"wildcard with another value", web, Request{Host: "a.b.example", Path: "/", Header: from(map[string]string{"x-beta": "11"})}, ""},
		{"the longer wildcard", web, Request{Host: "a.eu.example", Path: "/deep/path/", Header: from(map[string]string{"x-beta": "1"})}, "eu"},
		{"wildcard takes no apex", web, Request{Host: "example", Path: "/deep/path/"}, ""},
		{"wildcard wants a label", web, Request{Host: ".example", Path: "/deep/path/"}, ""},
		{"cookie with value", web, Request{Host: "x", Cookie: from(map[string]string{"srv": "b2"})}, "two"},
		{"cookie with any value", web, Request{Cookie: from(map[string]string{"srv": ""})}, "sticky"},
		{"cookie's name has its case", web, Request{Cookie: from(map[string]string{"SRV": "b2"})}, ""},
		{"IPv6 address", web, Request{Host: "[2001:db8::1]:80", Path: "/"}, "v6"},
		{"IPv6 address as parsers have it", web, Request{Host: "2001:db8::1", Path: "/"}, "v6"},
		{"IPv4 address", web, Request{Host: "192.0.2.1:80", Path: "/"}, "v4"},
		{"two conditions", web, Request{Path: "/x", Header: from(map[string]string{"x-kind": "a"}), Cookie: from(map[string]string{"c": "d"})}, "both"},
		{"one of two conditions", web, Request{Path: "/x", Header: from(map[string]string{"x-kind": "a"})}, ""},
		{"no path", web, Request{Path: "*", Header: from(map[string]string{"x-kind": "a"}), Cookie: from(map[string]string{"c": "d"})}, ""},
		{"bracket that does not end", web, Request{Host: "[2001:db8::1"}, ""},
		{"a name longer than names", web, Request{Host: strings.Repeat("a.", 300) + "example", Path: "/deep/path/"}, ""},
		{"nothing", web, Request{}, ""},
		{"SNI and ALPN", tls, Request{SNI: "a.secure.example", ALPN: []string{"http/1.1", "h2"}}, "h2"},
		{"SNI alone", tls, Request{SNI: "a.secure.example"}, "secure"},
		{"ALPN alone", tls, Request{ALPN: []string{"acme-tls/1"}}, "acme"},
		{"the Host is not looked at", tls, Request{Host: "a.secure.example"}, ""},
		{"no rule", nil, Request{Host: "a", Path: "/"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := compile(t, tt.rules...).Lookup(tt.r)
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("pool %q, %v, want %q", got, ok, tt.want)
			}
			if got, _ := naive(tt.rules).lookup(tt.r); got != tt.want {
				t.Errorf("the naive matcher says %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule Rule
		want string
	}{
		{"no pool", Rule{Host: "a"}, "routes[0]: pool: missing"},
		{"host and SNI", Rule{Host: "a", SNI: "a", Pool: "p"}, "sni: stands beside host"},
		{"port", Rule{Host: "a:80", Pool: "p"}, "leave the port out"},
		{"lone star", Rule{Host: "*", Pool: "p"}, "for any name leave it out"},
		{"star within a label", Rule{Host: "a*.example", Pool: "p"}, "host: \"a*.example\": a * stands only"},
		{"star in the middle", Rule{Host: "a.*.example", Pool: "p"}, "a * stands only"},
		{"star alone with a dot", Rule{Host: "*.", Pool: "p"}, "empty"},
		{"empty label", Rule{Host: "a..b", Pool: "p"}, "a label between dots is empty"},
		{"international", Rule{Host: "bücher.example", Pool: "p"}, "xn--"},
		{"space", Rule{Host: "a b", Pool: "p"}, "no character of a name"},
		{"long name", Rule{Host: strings.Repeat("a", 254), Pool: "p"}, "at most 253"},
		{"long label", Rule{Host: strings.Repeat("a", 64) + ".b", Pool: "p"}, "a label of 64 bytes"},
		{"half an address", Rule{Host: "[::1", Pool: "p"}, "alone within brackets"},
		{"address and port", Rule{Host: "[::1]:80", Pool: "p"}, "alone within brackets"},
		{"zone", Rule{Host: "fe80::1%eth0", Pool: "p"}, "want an IPv6 address"},
		{"IPv4 in brackets", Rule{Host: "[192.0.2.1]", Pool: "p"}, "want an IPv6 address"},
		{"address as SNI", Rule{SNI: "[::1]", Pool: "p"}, "is ever sent as server name"},
		{"SNI with a port", Rule{SNI: "a:443", Pool: "p"}, "is ever sent as server name"},
		{"relative path", Rule{Path: "static", Pool: "p"}, "begins with /"},
		{"query", Rule{Path: "/a?b", Pool: "p"}, "leave out the query"},
		{"escape", Rule{Path: "/a%20b", Pool: "p"}, "write %20 as the character"},
		{"small escape", Rule{Path: "/100%/a%2fb", Pool: "p"}, "write %2f as the character"},
		{"empty segment", Rule{Path: "/a//b", Pool: "p"}, "write one slash"},
		{"dot segment", Rule{Path: "/a/..", Pool: "p"}, "dot segment"},
		{"control character in path", Rule{Path: "/a\tb", Pool: "p"}, "control character"},
		{"long path", Rule{Path: "/" + strings.Repeat("a", 4096), Pool: "p"}, "at most 4096"},
		{"value without name", Rule{Header: Match{Value: "1"}, Pool: "p"}, "header: name: missing"},
		{"header's name", Rule{Header: Match{Name: "a b"}, Pool: "p"}, "header: name:"},
		{"cookie's name", Rule{Cookie: Match{Name: "a;b"}, Pool: "p"}, "cookie: name:"},
		{"two lines", Rule{Header: Match{"a", "b\nc"}, Pool: "p"}, "header: value:"},
		{"space around", Rule{Header: Match{"a", "b "}, Pool: "p"}, "remove the space"},
		{"long value", Rule{Header: Match{"a", strings.Repeat("b", 4097)}, Pool: "p"}, "longer than"},
		{"long protocol", Rule{ALPN: strings.Repeat("a", 256), Pool: "p"}, "at most 255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile([]Rule{tt.rule})
			var re *RuleError
			if !errors.As(err, &re) || re.Index != 0 || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestNeverChosen(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rules []Rule
		want  string // empty: all are of use
	}{
		{"twice", []Rule{{Host: "a", Pool: "p"}, {Host: "A.", Pool: "q"}}, "routes[1]: never chosen: routes[0]"},
		{"conditions after none", []Rule{{Path: "/", Pool: "p"}, {Path: "/", ALPN: "h2", Pool: "q"}}, "routes[1]: never chosen: routes[0]"},
		{"value after any", []Rule{{Cookie: Match{Name: "a"}, Pool: "p"}, {Cookie: Match{"a", "b"}, Pool: "q"}}, "routes[1]: never chosen"},
		{"more after fewer", []Rule{{Header: Match{"A", "b"}, Pool: "p"}, {Header: Match{"a", "b"}, ALPN: "h2", Pool: "q"}}, "routes[1]: never chosen"},
		{"any after value", []Rule{{Cookie: Match{"a", "b"}, Pool: "q"}, {Cookie: Match{Name: "a"}, Pool: "p"}}, ""},
		{"escaped slash, per cent, space", []Rule{{Path: "/a%2Fb", Pool: "p"}, {Path: "/100%", Pool: "q"}, {Path: "/ü b", Pool: "r"}}, ""},
		{"the other form of an address", []Rule{{Host: "[2001:db8::1]", Pool: "p"}, {Host: "2001:DB8:0::1", Pool: "q"}}, "routes[1]: never chosen"},
		{"another path", []Rule{{Path: "/a", Pool: "p"}, {Path: "/a/", Pool: "q"}}, ""},
		{"another name", []Rule{{Host: "*.a", Pool: "p"}, {Host: "a", Pool: "q"}}, ""},
		{"another cookie", []Rule{{Cookie: Match{"a", "b"}, Pool: "p"}, {Cookie: Match{"A", "b"}, Pool: "q"}}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Compile(tt.rules)
			if tt.want == "" {
				if err != nil {
					t.Errorf("error %v, want none", err)
				}
				return
			}
			if !errors.Is(err, ErrNeverChosen) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// TestAllErrors holds that an operator sees everything that is wrong at once.
func TestAllErrors(t *testing.T) {
	_, err := Compile([]Rule{{Host: "a", Pool: "p"}, {Host: "a:1", Pool: "p"}, {Path: "x", Pool: "p"}, {SNI: "a", Pool: "p"}})
	for _, want := range []string{"routes[0]: host: another route has sni", "routes[1]: host", "routes[2]: path"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// world draws rules and requests from few words, so that they meet.
type world struct {
	*rand.Rand
	// narrow leaves the rules one name and path: then they meet in their other conditions.
	narrow bool
}

func (w world) one(words ...string) string { return words[w.IntN(len(words))] }

func (w world) rule(sni bool) Rule {
	r := Rule{ALPN: w.one("", "", "", "h2", "spdy")}
	name := w.one("", "a.example", "b.a.example", "*.example", "*.a.example", "A.Example.", "*.B.a.example", "c")
	r.Path = w.one("", "", "/", "/x", "/x/", "/x/y", "/x/y/", "/xx", "/x/y/z")
	if w.narrow {
		name, r.Path = "", ""
	}
	if sni {
		r.SNI = name
	} else {
		r.Host = name
	}
	if w.IntN(3) == 0 {
		r.Header = Match{w.one("k", "K", "l"), w.one("", "1", "2")}
	}
	if w.IntN(3) == 0 {
		r.Cookie = Match{w.one("k", "K", "l"), w.one("", "1", "2")}
	}
	return r
}

func (w world) request() Request {
	name := w.one("", "a.example", "b.a.example", "example", "A.EXAMPLE:80", "x.b.a.example.", ".example", "xa.example", "c:1", "c.c")
	r := Request{Host: name, SNI: name, Path: w.one("", "*", "/", "/x", "/x/", "/xx/", "/x/y?/z", "/x/y/", "/x/y/z/", "//", "/x/y%2F")}
	if w.IntN(2) == 0 {
		r.Host = w.one("", "c")
	}
	for range w.IntN(3) {
		r.ALPN = append(r.ALPN, w.one("h2", "spdy", "http/1.1"))
	}
	fields := func() func(string) (string, bool) {
		m := map[string]string{}
		for range w.IntN(3) {
			m[w.one("k", "K", "l")] = w.one("", "1", "2", "3")
		}
		return from(m)
	}
	if w.IntN(4) > 0 {
		r.Header, r.Cookie = fields(), fields()
	}
	return r
}

// TestAgainstNaive holds that the table and the naive matcher agree, also on rules that the table refuses because they are
// never chosen: the naive matcher keeps them.
func TestAgainstNaive(t *testing.T) {
	w := world{Rand: rand.New(rand.NewPCG(1, 2))}
	fit, refused := 0, 0
	for round := range 2000 {
		var rules, useful []Rule
		sni := w.IntN(3) == 0
		w.narrow = round%4 == 0
		for i := range w.IntN(24) {
			r := w.rule(sni)
			r.Pool = fmt.Sprint(i)
			rules = append(rules, r)
			if _, err := Compile(append(slices.Clip(useful), r)); errors.Is(err, ErrNeverChosen) {
				refused++
				continue
			}
			useful = append(useful, r)
		}
		table := compile(t, useful...)
		for range 40 {
			r := w.request()
			got, gotOK := table.Lookup(r)
			want, wantOK := naive(rules).lookup(r)
			if got != want || gotOK != wantOK {
				t.Fatalf("round %d: pool %q, %v, want %q, %v\nrules %+v\nrequest %+v", round, got, gotOK, want, wantOK, rules, r)
			}
			if wantOK {
				fit++
			}
		}
	}
	t.Logf("%d lookups fitted, %d rules were useless", fit, refused)
	if fit < 20000 || refused < 1000 {
		t.Errorf("%d lookups fitted and %d rules were useless: the words do not meet", fit, refused)
	}
}

// TestHostilePath holds that a path of slashes costs as many questions as the rules have lengths.
func TestHostilePath(t *testing.T) {
	var rules []Rule
	for i := range 50 {
		rules = append(rules, Rule{Path: "/" + strings.Repeat("a", i), Pool: "p"})
	}
	table := compile(t, rules...)
	if got := len(table.unnamed.lengths); got != 50 {
		t.Errorf("%d lengths, want 50", got)
	}
	if _, ok := table.Lookup(Request{Path: strings.Repeat("/", 1<<20)}); !ok {
		t.Error("/ does not fit a path of slashes")
	}
}

func FuzzLookup(f *testing.F) {
	f.Add("shop.example", "/static/a", "x-beta", "1", "Shop.Example:80", "/static/a/b?c")
	f.Add("*.example", "/static", "", "", "a.b.example.", "/static")
	f.Add("[2001:db8::1]", "/", "k", "", "[2001:db8::1]:80", "//")
	f.Fuzz(func(t *testing.T, ruleHost, rulePath, field, value, host, path string) {
		rules := []Rule{
			{Host: ruleHost, Path: rulePath, Header: Match{field, value}, Pool: "a"},
			{Host: ruleHost, Path: rulePath, Pool: "b"},
			{Path: rulePath, Pool: "c"},
			{Pool: "d"},
		}
		table, err := Compile(rules)
		if err != nil {
			return
		}
		r := Request{Host: host, Path: path, Header: from(maps.Collect(func(yield func(string, string) bool) { yield(strings.ToLower(field), value) }))}
		got, ok := table.Lookup(r)
		if !ok {
			t.Fatal("a rule without conditions does not fit")
		}
		// The naive reading of names knows no more than those that clients send.
		if strings.Count(host, ":") > 1 || strings.Count(ruleHost, ":") > 1 || strings.ContainsAny(host, "[]") || len(host) > maxName || !isASCII(host+ruleHost) {
			return
		}
		if want, _ := naive(rules).lookup(r); got != want {
			t.Errorf("pool %q, want %q", got, want)
		}
	})
}

func isASCII(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c >= 0x80 })
}
