// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// goodHeads are requests and what they are routed by. The fuzzer starts from them, too.
var goodHeads = []struct {
	name, head string
	want       view
}{
	{
		"usual", "GET /a/b?c=d HTTP/1.1\r\nHost: Shop.Example:8080\r\nUser-Agent: x\r\nEmpty:\r\nX-Space: \t a b \t\r\n\r\n",
		view{Method: "GET", Host: "shop.example", Path: "/a/b", Fields: []string{"Host: Shop.Example:8080", "User-Agent: x", "Empty: ", "X-Space: a b"}},
	},
	{"shortest", "GET / HTTP/1.0\r\n\r\n", view{Method: "GET", Path: "/"}},
	{"empty line in front", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", view{Method: "GET", Host: "a", Path: "/", Fields: []string{"Host: a"}}},
	{"final dot", "GET / HTTP/1.1\r\nhost:a.example.\r\n\r\n", view{Method: "GET", Host: "a.example", Path: "/", Fields: []string{"host: a.example."}}},
	{"final dot and port", "GET / HTTP/1.1\r\nhost:a.example.:80\r\n\r\n", view{Method: "GET", Host: "a.example", Path: "/", Fields: []string{"host: a.example.:80"}}},
	{"no digits in port", "GET / HTTP/1.1\r\nhost:a:\r\n\r\n", view{Method: "GET", Host: "a", Path: "/", Fields: []string{"host: a:"}}},
	{"v4", "GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n", view{Method: "GET", Host: "10.0.0.1", Path: "/", Fields: []string{"Host: 10.0.0.1:80"}}},
	{"v6", "GET / HTTP/1.1\r\nHost: [FD77:0::1]:80\r\n\r\n", view{Method: "GET", Host: "fd77::1", Path: "/", Fields: []string{"Host: [FD77:0::1]:80"}}},
	{"v6 without port", "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", view{Method: "GET", Host: "::1", Path: "/", Fields: []string{"Host: [::1]"}}},
	{
		"absolute", "GET HTTP://A.example:80/x?y HTTP/1.1\r\nHost: a.example\r\n\r\n",
		view{Method: "GET", Host: "a.example", Path: "/x", Fields: []string{"Host: a.example"}},
	},
	{"absolute without path", "GET http://a HTTP/1.0\r\n\r\n", view{Method: "GET", Host: "a", Path: "/"}},
	{"absolute with query only", "GET http://a?/b HTTP/1.0\r\n\r\n", view{Method: "GET", Host: "a", Path: "/"}},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", view{Method: "OPTIONS", Host: "a", Path: "*", Fields: []string{"Host: a"}}},
	{"odd method", "M-SEARCH / HTTP/1.0\r\n\r\n", view{Method: "M-SEARCH", Path: "/"}},
	{"escapes", "GET /%73hop/%c3%a9/%3f%23%25%20 HTTP/1.0\r\n\r\n", view{Method: "GET", Path: "/shop/\u00e9/?#% "}},
	{"empty segments", "GET //a///b/ HTTP/1.0\r\n\r\n", view{Method: "GET", Path: "/a/b/"}},
	{"dots that are none", "GET /.well-known/..a/a../... HTTP/1.0\r\n\r\n", view{Method: "GET", Path: "/.well-known/..a/a../..."}},
	{"raw UTF-8", "GET /\u00e9 HTTP/1.0\r\nX: \u00e9\r\n\r\n", view{Method: "GET", Path: "/\u00e9", Fields: []string{"X: \u00e9"}}},
	{"dots in the query", "GET /a?../b//c HTTP/1.0\r\n\r\n", view{Method: "GET", Path: "/a"}},
}

func TestHTTP1(t *testing.T) {
	p := newParser(t, Config{})
	for _, c := range goodHeads {
		t.Run(c.name, func(t *testing.T) {
			for _, behind := range []string{"", "body", "GET /other HTTP/1.1\r\nHost: other\r\n\r\n", "\x00"} {
				key, err := checkPieces(t, p, []byte(c.head+behind))
				c.want.Len = len(c.head)
				if diff := cmp.Diff(c.want, viewOf(key), byValue); err != nil || diff != "" {
					t.Fatalf("%v (-want +got)\n%s", err, diff)
				}
				checkPrefixes(t, p, []byte(c.head+behind), key)
			}
		})
	}
}

// badHeads are requests that servers could read in two ways, or that are none.
var badHeads = []struct {
	name, head string
	want       Reason
}{
	{"TLS", "\x16\x03\x01\x02\x00\x01", SpeaksTLS},
	{"HTTP/2", preface, SpeaksHTTP2},
	{"PROXY 1", "PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.0\r\n\r\n", SpeaksProxy},
	{"PROXY 2", proxy2Start, MethodMalformed},
	{"binary", "\x00", MethodMalformed},
	{"two empty lines", "\r\n\r\nGET / HTTP/1.0\r\n\r\n", MethodMalformed},
	{"bare LF in front", "\nGET / HTTP/1.0\r\n\r\n", BareLF},
	{"CR in front", "\rGET / HTTP/1.0\r\n\r\n", ControlCharacter},
	{"space in front", " GET / HTTP/1.0\r\n\r\n", MethodMalformed},
	{"method", "G(T / HTTP/1.0\r\n\r\n", MethodMalformed},
	{"long method", strings.Repeat("M", maxMethod+1) + " / HTTP/1.0\r\n\r\n", MethodMalformed},
	{"endless method", strings.Repeat("M", 100), MethodMalformed},
	{"CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", MethodMalformed},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"two spaces behind", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n", VersionUnknown},
	{"space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", VersionUnknown},
	{"tab", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", MethodMalformed},
	{"tab in target", "GET /\t HTTP/1.1\r\nHost: a\r\n\r\n", ControlCharacter},
	{"NUL in target", "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", ControlCharacter},
	{"CR in line", "GET / HTTP/1.1\rHost: b\r\nHost: a\r\n\r\n", ControlCharacter},
	{"HTTP/0.9", "GET /\r\n\r\n", VersionUnknown},
	{"version", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", VersionUnknown},
	{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", VersionUnknown},
	{"space behind version", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n", VersionUnknown},
	{"bare LF", "GET / HTTP/1.1\nHost: a\r\n\r\n", BareLF},
	{"bare LF in fields", "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", BareLF},
	{"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", BareLF},
	{"folded", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", FoldedField},
	{"folded first", "GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", FoldedField},
	{"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", FieldMalformed},
	{"no colon", "GET / HTTP/1.1\r\nHost\r\n\r\n", FieldMalformed},
	{"no name", "GET / HTTP/1.1\r\n: a\r\n\r\n", FieldMalformed},
	{"NUL in field", "GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", ControlCharacter},
	{"CR in field", "GET / HTTP/1.1\r\nX: \rHost: b\r\nHost: a\r\n\r\n", ControlCharacter},
	{"DEL in field", "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", ControlCharacter},
	{"no host", "GET / HTTP/1.1\r\nX: a\r\n\r\n", HostMissing},
	{"absolute without host", "GET http://a/ HTTP/1.1\r\n\r\n", HostMissing},
	{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", HostRepeated},
	{"two hosts in 1.0", "GET / HTTP/1.0\r\nHost: a\r\nhost: a\r\n\r\n", HostRepeated},
	{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", HostMalformed},
	{"dot", "GET / HTTP/1.1\r\nHost: .\r\n\r\n", HostMalformed},
	{"two dots", "GET / HTTP/1.1\r\nHost: a..\r\n\r\n", HostMalformed},
	{"host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", HostMalformed},
	{"host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", HostMalformed},
	{"host with user", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", HostMalformed},
	{"host with two ports", "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", HostMalformed},
	{"port", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", HostMalformed},
	{"signed port", "GET / HTTP/1.1\r\nHost: a:+1\r\n\r\n", HostMalformed},
	{"host not ASCII", "GET / HTTP/1.1\r\nHost: \u00e9\r\n\r\n", HostMalformed},
	{"host escaped", "GET / HTTP/1.1\r\nHost: %61\r\n\r\n", HostMalformed},
	{"v6 without brackets", "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", HostMalformed},
	{"v6 with zone", "GET / HTTP/1.1\r\nHost: [fe80::1%eth0]\r\n\r\n", HostMalformed},
	{"v4 in brackets", "GET / HTTP/1.1\r\nHost: [10.0.0.1]\r\n\r\n", HostMalformed},
	{"behind brackets", "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", HostMalformed},
	{"open bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", HostMalformed},
	{"long label", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a", 64) + "\r\n\r\n", HostMalformed},
	{"long name", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a.", 127) + "\r\n\r\n", accepted},
	{"longer name", "GET / HTTP/1.1\r\nHost: " + strings.Repeat("a.", 127) + "a\r\n\r\n", HostMalformed},
	{"contradiction", "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", HostContradicts},
	{"user", "GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"no authority", "GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"authority form", "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"relative", "GET a/b HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"asterisk", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", TargetMalformed},
	{"dot segments", "GET /a/../b HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"dot segment at the end", "GET /a/. HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"escaped dot segments", "GET /a/%2e%2E/b HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"escaped slash", "GET /a%2fb HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"escaped NUL", "GET /a%00b HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"broken escape", "GET /a%2 HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"no escape", "GET /a%gg HTTP/1.0\r\n\r\n", PathAmbiguous},
	{"endless line", "GET /" + strings.Repeat("a", defaultBytes), TooLarge},
	{"many fields", "GET / HTTP/1.0\r\n" + strings.Repeat("a:\r\n", defaultFields) + "\r\n", accepted},
	{"more fields", "GET / HTTP/1.0\r\n" + strings.Repeat("a:\r\n", defaultFields+1) + "\r\n", TooManyFields},
	{"long head", "GET / HTTP/1.0\r\na:" + strings.Repeat("a", defaultBytes-22) + "\r\n\r\n", accepted},
	{"longer head", "GET / HTTP/1.0\r\na:" + strings.Repeat("a", defaultBytes-21) + "\r\n\r\n", TooLarge},
	{"nothing", "", incomplete},
}

func TestHTTP1Rejects(t *testing.T) {
	p := newParser(t, Config{})
	for _, c := range badHeads {
		t.Run(c.name, func(t *testing.T) {
			_, err := checkPieces(t, p, []byte(c.head))
			wantReason(t, err, c.want)
		})
	}
}

// A client that speaks something else is told before it has sent a line.
func TestHTTP1RejectsEarly(t *testing.T) {
	p := newParser(t, Config{})
	for head, want := range map[string]Reason{"\x16": SpeaksTLS, "\x80": MethodMalformed, "GE\x00": MethodMalformed, "\n": BareLF} {
		var g Progress
		_, err := p.Parse(&g, []byte(head))
		wantReason(t, err, want)
	}
}

func TestEncodedSlashes(t *testing.T) {
	p := newParser(t, Config{EncodedSlashes: true})
	for _, c := range []struct {
		path, want string
		reason     Reason
	}{
		{"/api/group%2fproject", "/api/group%2Fproject", accepted},
		{"/a/%2F/b", "/a/%2F/b", accepted},
		{"/a%2f../b", "", PathAmbiguous},
		{"/a/..%2fb", "", PathAmbiguous},
		{"/a%2F%2e%2e", "", PathAmbiguous},
	} {
		key, err := checkPieces(t, p, []byte("GET "+c.path+" HTTP/1.0\r\n\r\n"))
		wantReason(t, err, c.reason)
		if key.Path != c.want {
			t.Errorf("%s: %q, want %q", c.path, key.Path, c.want)
		}
	}
}

func TestHeaderAndCookie(t *testing.T) {
	p := newParser(t, Config{})
	var g Progress
	key, err := p.Parse(&g, []byte("GET / HTTP/1.1\r\nHost: a\r\nX-Beta: 1\r\nx-beta: 2\r\nEmpty:\r\n"+
		"Cookie: a=1; srv=b2;c ; d=x=y\r\ncookie:e=\"5\" ;srv=other; Srv=upper;;=v\r\n\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		find func(string) (string, bool)
		want string
		ok   bool
	}{
		{"x-beta", key.Header, "1", true},
		{"EMPTY", key.Header, "", true},
		{"x", key.Header, "", false},
		{"srv", key.Cookie, "b2", true},
		{"Srv", key.Cookie, "upper", true},
		{"a", key.Cookie, "1", true},
		{"c", key.Cookie, "", false},
		{"d", key.Cookie, "x=y", true},
		{"e", key.Cookie, `"5"`, true},
		{"", key.Cookie, "v", true},
	} {
		if got, ok := c.find(c.name); got != c.want || ok != c.ok {
			t.Errorf("%q: %q %v, want %q %v", c.name, got, ok, c.want, c.ok)
		}
	}
}

// What net/http sends is read, whatever the request.
func TestHTTP1FromNetHTTP(t *testing.T) {
	p := newParser(t, Config{})
	for _, c := range []struct{ method, url, host, path string }{
		{"GET", "http://Shop.Example:81/a%20b/c?d=e", "shop.example", "/a b/c"},
		{"POST", "http://[fd77::1]/", "fd77::1", "/"},
		{"DELETE", "http://10.1.2.3", "10.1.2.3", "/"},
		{"PROPFIND", "http://a/\u00fc", "a", "/\u00fc"},
	} {
		r, err := http.NewRequest(c.method, c.url, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		r.AddCookie(&http.Cookie{Name: "srv", Value: "b2"})
		var b bytes.Buffer
		if err := r.Write(&b); err != nil {
			t.Fatal(err)
		}
		key, err := checkPieces(t, p, b.Bytes())
		if err != nil || key.Method != c.method || key.Host != c.host || key.Path != c.path {
			t.Errorf("%s %s: %+v %v", c.method, c.url, key, err)
		}
		if v, ok := key.Cookie("srv"); v != "b2" || !ok {
			t.Errorf("cookie %q %v", v, ok)
		}
	}
}

// TestQuery holds that the query is there as it was sent, in every form of a target.
func TestQuery(t *testing.T) {
	for target, want := range map[string]string{
		"/": "", "/?": "", "/a?b=c&d=%20": "b=c&d=%20", "http://a?x=/y": "x=/y", "http://a/b?c?d": "c?d", "*": "",
	} {
		method := "GET"
		if target == "*" {
			method = "OPTIONS"
		}
		p, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		var g Progress
		k, err := p.Parse(&g, []byte(method+" "+target+" HTTP/1.1\r\nHost: a\r\n\r\n"))
		if err != nil || k.Query != want {
			t.Errorf("%s: query %q, %v; want %q", target, k.Query, err, want)
		}
	}
}
