// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// proxy2 makes a header of version 2.
func proxy2(command, family byte, content ...byte) string {
	return proxy2Start + string([]byte{command, family}) + string(vector(2, content...))
}

var (
	proxySource      = netip.MustParseAddrPort("10.1.2.3:4000")
	proxyDestination = netip.MustParseAddrPort("10.9.8.7:443")
	proxySource6     = netip.MustParseAddrPort("[fd77::1]:4000")
	proxyDest6       = netip.MustParseAddrPort("[fd77::2]:443")
)

// endpoints is how version 2 has two addresses.
func endpoints(s, d netip.AddrPort) []byte {
	b := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	return append(b, byte(s.Port()>>8), byte(s.Port()), byte(d.Port()>>8), byte(d.Port()))
}

var goodProxies = []struct {
	name, header string
	want         ProxyHeader
}{
	{"1, v4", "PROXY TCP4 10.1.2.3 10.9.8.7 4000 443\r\n", ProxyHeader{Version: 1, Source: proxySource, Destination: proxyDestination}},
	{"1, v6", "PROXY TCP6 fd77::1 FD77:0::2 4000 443\r\n", ProxyHeader{Version: 1, Source: proxySource6, Destination: proxyDest6}},
	{"1, port 0", "PROXY TCP4 10.1.2.3 10.9.8.7 0 443\r\n", ProxyHeader{Version: 1, Source: netip.AddrPortFrom(proxySource.Addr(), 0), Destination: proxyDestination}},
	{"1, unknown", "PROXY UNKNOWN\r\n", ProxyHeader{Version: 1}},
	{"1, unknown and more", "PROXY UNKNOWN ffff::ffff what ever 1 2\r\n", ProxyHeader{Version: 1}},
	{"1, longest", "PROXY UNKNOWN " + strings.Repeat("x", maxProxy1-16) + "\r\n", ProxyHeader{Version: 1}},
	{"2, v4", proxy2(0x21, 0x11, endpoints(proxySource, proxyDestination)...), ProxyHeader{Version: 2, Source: proxySource, Destination: proxyDestination}},
	{"2, v6", proxy2(0x21, 0x21, endpoints(proxySource6, proxyDest6)...), ProxyHeader{Version: 2, Source: proxySource6, Destination: proxyDest6}},
	{"2, UDP", proxy2(0x21, 0x12, endpoints(proxySource, proxyDestination)...), ProxyHeader{Version: 2, Source: proxySource, Destination: proxyDestination}},
	{"2, TLV", proxy2(0x21, 0x11, append(endpoints(proxySource, proxyDestination), 1, 0, 2, 'h', '2', 4, 0, 0)...), ProxyHeader{Version: 2, Source: proxySource, Destination: proxyDestination}},
	{"2, local", proxy2(0x20, 0), ProxyHeader{Version: 2, Local: true}},
	{"2, local with addresses", proxy2(0x20, 0x11, endpoints(proxySource, proxyDestination)...), ProxyHeader{Version: 2, Local: true}},
	{"2, unspecified", proxy2(0x21, 0, 1, 2, 3), ProxyHeader{Version: 2}},
	{"2, unix", proxy2(0x21, 0x31, make([]byte, 216)...), ProxyHeader{Version: 2}},
}

func TestProxy(t *testing.T) {
	hello := string(handmade(serverName("a")))
	request := newConversation().request(usual()...)
	for _, c := range goodProxies {
		for mode, behind := range map[Mode]string{
			HTTP: "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", TLS: hello, HTTP2: string(request), TCP: "",
		} {
			t.Run(c.name+"/"+mode.String(), func(t *testing.T) {
				p := newParser(t, Config{Mode: mode, ProxyProtocol: true})
				b := []byte(c.header + behind + "more")
				key, err := checkPieces(t, p, b)
				c.want.Len = len(c.header)
				if diff := cmp.Diff(c.want, key.Proxy, byValue); err != nil || diff != "" {
					t.Fatalf("%v (-want +got)\n%s", err, diff)
				}
				if key.Len != len(c.header+behind) {
					t.Errorf("a key of %d bytes, want %d", key.Len, len(c.header+behind))
				}
				checkPrefixes(t, p, b, key)
				if mode == HTTP && key.Host != "a" || mode == TLS && key.SNI != "a" || mode == HTTP2 && key.Host != "a.example" {
					t.Errorf("%+v", key)
				}
			})
		}
	}
}

func TestProxyRejects(t *testing.T) {
	v4 := string(endpoints(proxySource, proxyDestination))
	for _, c := range []struct {
		name, header string
		want         Reason
	}{
		{"none", "GET / HTTP/1.1\r\n", ProxyMissing},
		{"TLS", "\x16\x03\x01", ProxyMissing},
		{"begins like 1", "PROXX", ProxyMissing},
		{"begins like 2", "\r\n\r\nG", ProxyMissing},
		{"lower case", "proxy TCP4", ProxyMissing},
		{"1, too long", "PROXY UNKNOWN " + strings.Repeat("x", maxProxy1-15) + "\r\n", ProxyMalformed},
		{"1, endless", "PROXY UNKNOWN " + strings.Repeat("x", 200), ProxyMalformed},
		{"1, bare LF", "PROXY UNKNOWN\n", ProxyMalformed},
		{"1, nothing", "PROXY \r\n", ProxyMalformed},
		{"1, unknown family", "PROXY UDP4 10.1.2.3 10.9.8.7 4000 443\r\n", ProxyMalformed},
		{"1, two spaces", "PROXY TCP4  10.1.2.3 10.9.8.7 4000 443\r\n", ProxyMalformed},
		{"1, space behind", "PROXY TCP4 10.1.2.3 10.9.8.7 4000 443 \r\n", ProxyMalformed},
		{"1, v6 as TCP4", "PROXY TCP4 fd77::1 fd77::2 4000 443\r\n", ProxyMalformed},
		{"1, v4 as TCP6", "PROXY TCP6 10.1.2.3 10.9.8.7 4000 443\r\n", ProxyMalformed},
		{"1, zone", "PROXY TCP6 fe80::1%eth0 fe80::2 4000 443\r\n", ProxyMalformed},
		{"1, port", "PROXY TCP4 10.1.2.3 10.9.8.7 65536 443\r\n", ProxyMalformed},
		{"1, leading zero", "PROXY TCP4 10.1.2.3 10.9.8.7 04000 443\r\n", ProxyMalformed},
		{"1, no port", "PROXY TCP4 10.1.2.3 10.9.8.7  443\r\n", ProxyMalformed},
		{"1, address", "PROXY TCP4 10.1.2 10.9.8.7 4000 443\r\n", ProxyMalformed},
		{"2, version", proxy2(0x11, 0x11), ProxyMalformed},
		{"2, command", proxy2(0x22, 0x11), ProxyMalformed},
		{"2, family", proxy2(0x21, 0x41), ProxyMalformed},
		{"2, transport", proxy2(0x21, 0x13), ProxyMalformed},
		{"2, too short for v4", proxy2(0x21, 0x11, []byte(v4[:11])...), ProxyMalformed},
		{"2, too short for v6", proxy2(0x21, 0x21, []byte(v4)...), ProxyMalformed},
		{"2, TLV cut", proxy2(0x21, 0x11, []byte(v4+"\x01\x00\x02h")...), ProxyMalformed},
		{"2, longer than the limit", proxy2Start + "\x21\x11\xff\xff", TooLarge},
		{"nothing", "", incomplete},
		{"nothing behind", "PROXY UNKNOWN\r\n", incomplete},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := checkPieces(t, newParser(t, Config{ProxyProtocol: true}), []byte(c.header))
			wantReason(t, err, c.want)
		})
	}
}

// The limit counts the header and what follows it together.
func TestProxyCountsForTheLimit(t *testing.T) {
	header, head := "PROXY UNKNOWN\r\n", "GET / HTTP/1.0\r\nX: "
	for _, c := range []struct {
		length int
		want   Reason
	}{{256, accepted}, {257, TooLarge}} {
		b := header + head + strings.Repeat("x", c.length-len(header+head)-4) + "\r\n\r\n"
		_, err := checkPieces(t, newParser(t, Config{ProxyProtocol: true, Limits: Limits{Bytes: 256}}), []byte(b))
		wantReason(t, err, c.want)
	}
}
