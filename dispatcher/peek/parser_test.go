// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
)

// view is what a test compares of a key.
type view struct {
	Method, Host, Path, SNI string
	ALPN                    []string
	TLSVersion              uint16
	ECH                     bool
	Proxy                   ProxyHeader
	Len                     int
	Fields                  []string
}

func viewOf(k Key) view {
	v := view{
		Method: k.Method, Host: k.Host, Path: k.Path, SNI: k.SNI, ALPN: k.ALPN,
		TLSVersion: k.TLSVersion, ECH: k.ECH, Proxy: k.Proxy, Len: k.Len,
	}
	for name, value := range k.Fields() {
		v.Fields = append(v.Fields, name+": "+value)
	}
	return v
}

var byValue = cmp.Comparer(func(a, b ProxyHeader) bool { return a == b })

func newParser(t testing.TB, cfg Config) *Parser {
	t.Helper()
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reasonOf returns what an error of Parse says: accepted, incomplete or the reason.
func reasonOf(t testing.TB, err error) Reason {
	t.Helper()
	var reject *RejectError
	switch {
	case err == nil:
		return accepted
	case errors.Is(err, ErrMore):
		return incomplete
	case errors.As(err, &reject):
		return reject.Reason
	}
	t.Fatalf("unknown error %v", err)
	return accepted
}

// checkPieces holds that the answer on b is the same however b came: at once, grown in steps, or as any prefix that is long
// enough; and that a shorter one is never answered by a key. It returns the answer.
func checkPieces(t testing.TB, p *Parser, b []byte) (Key, error) {
	t.Helper()
	var whole Progress
	key, err := p.Parse(&whole, b)
	again, errAgain := p.Parse(&whole, b)
	if diff := cmp.Diff(viewOf(key), viewOf(again), byValue); diff != "" || reasonOf(t, err) != reasonOf(t, errAgain) {
		t.Fatalf("asked again: %v, then %v\n%s", err, errAgain, diff)
	}
	if err == nil && (key.Len < 0 || key.Len > len(b)) {
		t.Fatalf("key of %d bytes from %d", key.Len, len(b))
	}
	for _, step := range []int{1, 7, 1000} {
		var grown Progress
		for n := 0; ; n = min(n+step, len(b)) {
			// A copy, so that a parser that reads behind its input is found out.
			k, e := p.Parse(&grown, slices.Clip(bytes.Clone(b[:n])))
			if r := reasonOf(t, e); r != incomplete || n == len(b) {
				if r != reasonOf(t, err) {
					t.Fatalf("%d bytes in steps of %d: %v; at once: %v", n, step, e, err)
				}
				want := viewOf(key)
				if diff := cmp.Diff(want, viewOf(k), byValue); diff != "" {
					t.Fatalf("%d bytes in steps of %d (-at once +now):\n%s", n, step, diff)
				}
				if r == accepted && n < key.Len {
					t.Fatalf("key of %d bytes from %d", key.Len, n)
				}
				break
			}
			if err == nil && n >= key.Len {
				t.Fatalf("%d bytes in steps of %d ask for more; the key needed %d", n, step, key.Len)
			}
			if need := grown.Need(); need <= n || err == nil && need > key.Len {
				t.Fatalf("%d bytes: %d needed, of %d", n, need, key.Len)
			}
		}
	}
	return key, err
}

// checkPrefixes holds that every prefix of b, looked at for the first time, asks for more or gives the same key.
func checkPrefixes(t testing.TB, p *Parser, b []byte, key Key) {
	t.Helper()
	for n := range len(b) {
		var g Progress
		k, err := p.Parse(&g, b[:n])
		if n < key.Len {
			if !errors.Is(err, ErrMore) {
				t.Fatalf("%d of %d bytes: %v", n, key.Len, err)
			}
			continue
		}
		if diff := cmp.Diff(viewOf(key), viewOf(k), byValue); err != nil || diff != "" {
			t.Fatalf("%d bytes: %v\n%s", n, err, diff)
		}
	}
}

// wantReason checks an answer that is a rejection.
func wantReason(t testing.TB, err error, want Reason) {
	t.Helper()
	if got := reasonOf(t, err); got != want {
		t.Errorf("%v (%v), want %v", err, got, want)
	}
}

func TestTCP(t *testing.T) {
	p := newParser(t, Config{Mode: TCP})
	var g Progress
	key, err := p.Parse(&g, nil)
	if diff := cmp.Diff(view{}, viewOf(key), byValue); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// A connection that waits holds nothing but this.
func TestProgressSize(t *testing.T) {
	if size := unsafe.Sizeof(Progress{}); size > 64 {
		t.Errorf("a Progress has %d bytes", size)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"zero", Config{}, true},
		{"mode", Config{Mode: TCP + 1}, false},
		{"bytes", Config{Limits: Limits{Bytes: 255}}, false},
		{"bytes at most", Config{Limits: Limits{Bytes: 1 << 20}}, true},
		{"bytes too many", Config{Limits: Limits{Bytes: 1<<20 + 1}}, false},
		{"fields", Config{Limits: Limits{Fields: -1}}, false},
		{"decoded", Config{Limits: Limits{Decoded: 1}}, false},
	} {
		if _, err := New(c.cfg); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if got := newParser(t, Config{}).Limit(); got != 16384 {
		t.Errorf("a limit of %d bytes by default", got)
	}
}

func TestReasonNames(t *testing.T) {
	seen := make(map[string]Reason)
	for r := accepted; r < incomplete; r++ {
		name := r.String()
		if other, ok := seen[name]; ok || name == "" || name == "unknown" {
			t.Errorf("reason %d is called %q, as is %d", r, name, other)
		}
		seen[name] = r
	}
	err := error(&RejectError{Mode: TLS, Reason: NotTLS, Offset: 3})
	if !errors.Is(err, &RejectError{Reason: NotTLS}) || errors.Is(err, &RejectError{Reason: BareLF}) {
		t.Error("errors.Is does not go by the reason")
	}
	if got, want := err.Error(), "peek: not-tls at byte 3 of a connection to a service of mode tls"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A client that sends byte by byte must not make the parser look at all of them each time.
func TestTricklingIsLinear(t *testing.T) {
	head := append([]byte("GET / HTTP/1.1\r\nHost: a\r\nX: "), bytes.Repeat([]byte("x"), 16000)...)
	records := func() (b []byte) {
		message := append([]byte{messageHello, 0, 0x0a, 0}, make([]byte, 2560)...)
		for _, c := range message[:2500] {
			b = append(b, recordHandshake, 3, 1, 0, 1, c)
		}
		return b
	}()
	frames := []byte(preface)
	frames = appendFrame(frames, frameSettings, 0, 0, nil)
	frames = appendFrame(frames, frameHeaders, 0, 1, nil)
	for len(frames) < 16000 {
		frames = appendFrame(frames, frameContinuation, 0, 1, nil)
	}
	for _, c := range []struct {
		mode Mode
		b    []byte
		left int32 // bytes that may be looked at again
	}{{HTTP, head, maxMethod}, {TLS, records, recordHeader + 1}, {HTTP2, frames, int32(len(preface)) + frameHeader}} {
		p := newParser(t, Config{Mode: c.mode})
		var g Progress
		for n := range len(c.b) {
			_, err := p.Parse(&g, c.b[:n])
			read := g.off
			if c.mode == HTTP {
				read = g.scan
			}
			if !errors.Is(err, ErrMore) || int32(n)-read > c.left {
				t.Fatalf("%v: %v after %d bytes; the next call begins at %d", c.mode, err, n, read)
			}
		}
		if n := testing.AllocsPerRun(10, func() { p.Parse(&g, c.b) }); n != 0 {
			t.Errorf("%v: %v allocations to ask for more", c.mode, n)
		}
	}
}

// Whatever the caller does, the parser does not panic: here the bytes change between two calls.
func checkChanged(t testing.TB, p *Parser, before, after []byte) {
	t.Helper()
	var g Progress
	for _, b := range [][]byte{before, after, before[:len(before)/2], before} {
		if _, err := p.Parse(&g, b); reasonOf(t, err) == incomplete && g.Need() <= 0 {
			t.Fatal("nothing needed")
		}
	}
}
