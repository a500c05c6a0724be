// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzHTTP1 compares with net/http: where both accept a request they agree on what it is routed by.
func FuzzHTTP1(f *testing.F) {
	for _, c := range goodHeads {
		f.Add([]byte(c.head))
	}
	for _, c := range badHeads {
		f.Add([]byte(c.head))
	}
	p := newParser(f, Config{Limits: Limits{Bytes: 4096}})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := checkPieces(t, p, b)
		checkChanged(t, p, b, bytes.ToUpper(b))
		if err == nil {
			compareHTTP1(t, &key, b)
		}
	})
}

func compareHTTP1(t *testing.T, k *Key, b []byte) {
	// The empty line that a server should ignore is not ignored by net/http.
	head := bytes.TrimPrefix(b[:k.Len], []byte("\r\n"))
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return
	}
	if r.Method != k.Method {
		t.Errorf("method %q, net/http %q", k.Method, r.Method)
	}
	if host, reason := parseHost(r.Host); host != k.Host && (reason == accepted || r.Host != "") {
		t.Errorf("host %q, net/http %q", k.Host, r.Host)
	}
	path := r.URL.Path
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	if path == "" {
		path = "/"
	}
	if path != k.Path {
		t.Errorf("path %q, net/http %q", k.Path, r.URL.Path)
	}
	for name := range r.Header {
		if v, ok := k.Header(name); !ok || v != r.Header.Get(name) {
			t.Errorf("%s is %q, net/http %q", name, v, r.Header.Get(name))
		}
	}
	for name := range k.Fields() {
		if _, ok := r.Header[http.CanonicalHeaderKey(name)]; !ok && !equalFold(name, "host") && !isHopByHop(name) {
			t.Errorf("net/http does not know %q", name)
		}
	}
}

// isHopByHop tells fields that net/http takes out of the header.
func isHopByHop(name string) bool {
	return equalFold(name, "transfer-encoding") || equalFold(name, "trailer") || equalFold(name, "content-length") || equalFold(name, "connection")
}

// FuzzTLS compares with crypto/tls: where both accept a ClientHello they agree on it. It reads the same, too, when its
// records are cut anew.
func FuzzTLS(f *testing.F) {
	for i := range helloConfigs {
		f.Add(helloOf(f, &helloConfigs[i].cfg), uint16(100))
	}
	f.Add(handmade(serverName("a"), extension(extensionALPN, vector(2, 2, 'h', '2')...)), uint16(1))
	f.Add([]byte("\x80\x2e\x01\x03\x01"), uint16(1))
	p := newParser(f, Config{Mode: TLS, Limits: Limits{Bytes: 8192}})
	long := newParser(f, Config{Mode: TLS, Limits: Limits{Bytes: 1 << 20}})
	f.Fuzz(func(t *testing.T, b []byte, size uint16) {
		key, err := checkPieces(t, p, b)
		checkChanged(t, p, b, bytes.ToUpper(b))
		if err == nil {
			compareHello(t, &key, b)
		}
		if err != nil || size == 0 || len(b) < recordHeader || int(b[3])<<8|int(b[4]) != key.Len-recordHeader {
			return
		}
		var g Progress
		cut, err := long.Parse(&g, inRecords(b[:key.Len], int(size)))
		if err != nil || cut.SNI != key.SNI || strings.Join(cut.ALPN, " ") != strings.Join(key.ALPN, " ") || cut.TLSVersion != key.TLSVersion {
			t.Errorf("%v: %+v, in records of %d bytes %+v", err, key, size, cut)
		}
	})
}

// FuzzHTTP2 compares with x/net's framer: where both accept a request they agree on it.
func FuzzHTTP2(f *testing.F) {
	for _, c := range goodConversations() {
		f.Add(c.b[len(preface):])
	}
	p := newParser(f, Config{Mode: HTTP2, Limits: Limits{Bytes: 4096}})
	f.Fuzz(func(t *testing.T, behind []byte) {
		b := append([]byte(preface), behind...)
		key, err := checkPieces(t, p, b)
		checkChanged(t, p, b, bytes.ToUpper(b))
		if err == nil {
			compareHTTP2(t, &key, b[:key.Len])
		}
	})
}

func compareHTTP2(t *testing.T, k *Key, b []byte) {
	framer := http2.NewFramer(nil, bytes.NewReader(b[len(preface):]))
	framer.ReadMetaHeaders = hpack.NewDecoder(hpackTable, nil)
	for range len(b) {
		frame, err := framer.ReadFrame()
		if err != nil {
			return // x/net is stricter on some frames
		}
		h, ok := frame.(*http2.MetaHeadersFrame)
		if !ok {
			continue
		}
		if h.StreamID != k.stream || h.PseudoValue("method") != k.Method {
			t.Errorf("stream %d, method %q, x/net %v", k.stream, k.Method, h)
		}
		authority := h.PseudoValue("authority")
		var fields []string
		for _, field := range h.RegularFields() {
			if authority == "" && field.Name == "host" {
				authority = field.Value
			}
			fields = append(fields, field.Name+": "+trim(field.Value))
		}
		if host, reason := parseHost(authority); reason != accepted || host != k.Host {
			t.Errorf("host %q, x/net %q", k.Host, authority)
		}
		path, _, _ := strings.Cut(h.PseudoValue("path"), "?")
		if clean, reason := cleanPath(path, false); reason != accepted || clean != k.Path {
			t.Errorf("path %q, x/net %q", k.Path, path)
		}
		if got := viewOf(*k).Fields; strings.Join(got, "\n") != strings.Join(fields, "\n") {
			t.Errorf("fields %q, x/net %q", got, fields)
		}
		return
	}
}

func FuzzProxy(f *testing.F) {
	for _, c := range goodProxies {
		f.Add([]byte(c.header + "\r\nGET / HTTP/1.0\r\n\r\n"))
	}
	p := newParser(f, Config{Mode: TCP, ProxyProtocol: true, Limits: Limits{Bytes: 1024}})
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := checkPieces(t, p, b)
		checkChanged(t, p, b, bytes.ToUpper(b))
		if err != nil {
			return
		}
		h := key.Proxy
		if h.Len != key.Len || h.Len == 0 || h.Source.IsValid() != h.Destination.IsValid() || h.Local && h.Source.IsValid() {
			t.Errorf("%+v", key)
		}
		if h.Source.IsValid() && h.Source.Addr().Is4() != h.Destination.Addr().Is4() {
			t.Errorf("addresses of two families: %+v", h)
		}
	})
}
