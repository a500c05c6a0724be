// SPDX-License-Identifier: Apache-2.0

package peek

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// conversation writes what an HTTP/2 client sends, with the framer of x/net.
type conversation struct {
	bytes.Buffer
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

// newConversation has sent the preface and SETTINGS.
func newConversation(settings ...http2.Setting) *conversation {
	c := &conversation{}
	c.Framer = http2.NewFramer(&c.Buffer, nil)
	c.AllowIllegalWrites = true
	c.encoder = hpack.NewEncoder(&c.block)
	c.WriteString(http2.ClientPreface)
	c.WriteSettings(settings...)
	return c
}

// fields encodes name, value, name, value.
func (c *conversation) fields(pairs ...string) []byte {
	c.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		c.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return bytes.Clone(c.block.Bytes())
}

// request sends a HEADERS frame that ends the request.
func (c *conversation) request(pairs ...string) []byte {
	c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.fields(pairs...), EndHeaders: true, EndStream: true})
	return c.Bytes()
}

// usual are the fields that a request must have.
func usual(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":path", "/a?b", ":authority", "A.example:80"}, more...)
}

// goodConversations are also what the fuzzer starts from.
func goodConversations() []struct {
	name string
	b    []byte
	want view
} {
	plain := view{Method: "GET", Host: "a.example", Path: "/a"}
	with := func(fields ...string) view {
		v := plain
		v.Fields = fields
		return v
	}
	everything := newConversation(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	everything.WriteWindowUpdate(0, 1000)
	everything.WritePing(false, [8]byte{1})
	everything.WritePriority(3, http2.PriorityParam{Weight: 1})
	everything.WriteRawFrame(0x10, 0, 0, []byte("\x00\x00\x00\x01u=1"))
	everything.WriteSettingsAck()

	padded := newConversation()
	padded.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 3, BlockFragment: padded.fields(usual()...), EndHeaders: true, PadLength: 200,
		Priority: http2.PriorityParam{StreamDep: 1, Weight: 9},
	})

	cut := newConversation()
	block := cut.fields(usual("x-long", strings.Repeat("abc", 1000))...)
	cut.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:3], PadLength: 5})
	cut.WriteContinuation(1, false, block[3:4])
	cut.WriteContinuation(1, false, nil)
	cut.WriteContinuation(1, true, block[4:])

	return []struct {
		name string
		b    []byte
		want view
	}{
		{"usual", newConversation().request(usual()...), plain},
		{
			"fields", newConversation().request(usual("cookie", "a=1", "x-beta", " 1\t", "cookie", "srv=b2", "empty", "")...),
			with("cookie: a=1", "x-beta: 1", "cookie: srv=b2", "empty: "),
		},
		{"frames before", everything.request(usual()...), plain},
		{"padding and priority", padded.Bytes(), plain},
		{"continuation", cut.Bytes(), with("x-long: " + strings.Repeat("abc", 1000))},
		{"host too", newConversation().request(usual("host", "a.example")...), with("host: a.example")},
		{"host instead", newConversation().request(":method", "GET", ":scheme", "http", ":path", "/", "host", "b"), view{Method: "GET", Host: "b", Path: "/", Fields: []string{"host: b"}}},
		{"asterisk", newConversation().request(":method", "OPTIONS", ":scheme", "http", ":path", "*", ":authority", "b"), view{Method: "OPTIONS", Host: "b", Path: "*"}},
	}
}

func TestHTTP2(t *testing.T) {
	p := newParser(t, Config{Mode: HTTP2})
	for _, c := range goodConversations() {
		t.Run(c.name, func(t *testing.T) {
			c.want.Len = len(c.b)
			b := append(bytes.Clone(c.b), 0, 0, 0, frameData)
			key, err := checkPieces(t, p, b)
			if diff := cmp.Diff(c.want, viewOf(key), byValue); err != nil || diff != "" {
				t.Fatalf("%v (-want +got)\n%s", err, diff)
			}
			checkPrefixes(t, p, b, key)
			if v, ok := key.Cookie("srv"); ok != (v == "b2") || ok != (c.name == "fields") {
				t.Errorf("cookie %q %v", v, ok)
			}
		})
	}
}

func TestHTTP2Rejects(t *testing.T) {
	p := newParser(t, Config{Mode: HTTP2})
	framed := func(write func(*conversation)) []byte {
		c := newConversation()
		write(c)
		return c.request(usual()...)
	}
	raw := func(kind http2.FrameType, flags http2.Flags, stream uint32, content ...byte) []byte {
		return framed(func(c *conversation) { c.WriteRawFrame(kind, flags, stream, content) })
	}
	first := func(kind http2.FrameType, flags http2.Flags) []byte {
		c := newConversation()
		c.Reset()
		c.WriteString(preface)
		c.WriteRawFrame(kind, flags, 0, nil)
		return c.request(usual()...)
	}
	request := func(pairs ...string) []byte { return newConversation().request(pairs...) }
	// One long field in the dynamic table, then one octet for each repetition: 3 MB of fields in 4 KB.
	bomb := func() []byte {
		c := newConversation()
		block := append(c.fields(usual("x", strings.Repeat("a", 3000))...), bytes.Repeat([]byte{0x80 | 62}, 1000)...)
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
		return c.Bytes()
	}()
	flood := func() []byte {
		c := newConversation()
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
		for c.Len() < 2*defaultBytes {
			c.WriteContinuation(1, false, nil)
		}
		return c.Bytes()
	}()
	for _, c := range []struct {
		name string
		b    []byte
		want Reason
	}{
		{"TLS", []byte{22, 3, 1}, SpeaksTLS},
		{"HTTP/1", []byte("GET / HTTP/1.1\r\n"), SpeaksHTTP},
		{"HTTP/1 that begins like it", []byte("PRI /"), SpeaksHTTP},
		{"binary", []byte{0}, PrefaceMalformed},
		{"preface", []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\n"), PrefaceMalformed},
		{"PING first", first(framePing, 0), FrameMalformed},
		{"HEADERS first", first(frameHeaders, flagEndHeaders), FrameMalformed},
		{"ACK first", first(frameSettings, flagAck), FrameMalformed},
		{"DATA", raw(frameData, 0, 1), FrameMalformed},
		{"RST_STREAM", raw(frameReset, 0, 1, 0, 0, 0, 0), FrameMalformed},
		{"GOAWAY", raw(frameGoAway, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), FrameMalformed},
		{"PUSH_PROMISE", raw(framePushPromise, 0, 1), FrameMalformed},
		{"CONTINUATION", raw(frameContinuation, 0, 1), FrameMalformed},
		{"SETTINGS length", raw(frameSettings, 0, 0, 0), FrameMalformed},
		{"SETTINGS stream", raw(frameSettings, 0, 1), FrameMalformed},
		{"SETTINGS ACK length", raw(frameSettings, flagAck, 0, 0, 0, 0, 0, 0, 0), FrameMalformed},
		{"PING length", raw(framePing, 0, 0, 0), FrameMalformed},
		{"WINDOW_UPDATE stream", raw(frameWindowUpdate, 0, 1, 0, 0, 0, 1), FrameMalformed},
		{"PRIORITY stream", raw(framePriority, 0, 0, 0, 0, 0, 0, 0), FrameMalformed},
		{"HEADERS stream", raw(frameHeaders, flagEndHeaders, 2), FrameMalformed},
		{"HEADERS stream 0", raw(frameHeaders, flagEndHeaders, 0), FrameMalformed},
		{"padding", raw(frameHeaders, flagEndHeaders|flagPadded, 1, 3, 0, 0), FrameMalformed},
		{"padding missing", raw(frameHeaders, flagEndHeaders|flagPadded, 1), FrameMalformed},
		{"priority missing", raw(frameHeaders, flagEndHeaders|flagPriority, 1, 0, 0), FrameMalformed},
		{"frame inside the block", raw(frameHeaders, 0, 1), FrameMalformed},
		{"another stream's CONTINUATION", framed(func(c *conversation) {
			c.WriteRawFrame(frameHeaders, 0, 1, nil)
			c.WriteContinuation(3, true, nil)
		}), FrameMalformed},
		{"frame too long", append(newConversation().Bytes(), 0, 0x40, 1, 0x20, 0, 0, 0, 0, 0), FrameMalformed},
		{"frame as long as the limit", append(newConversation().Bytes(), 0, 0x40, 0, 0x20, 0, 0, 0, 0, 0), TooLarge},
		{"CONTINUATION flood", flood, TooLarge},
		{"decompression bomb", bomb, TooLarge},
		{"long string", request(usual("x", strings.Repeat("0", defaultDecoded+1))...), TooLarge},
		{"index out of table", raw(frameHeaders, flagEndHeaders, 1, 0xfe), BlockMalformed},
		{"bad field before a broken one", raw(frameHeaders, flagEndHeaders, 1, 0x82, 0x00, 1, 'a', 1, 0, 0xfe), ControlCharacter},
		{"block cut", raw(frameHeaders, flagEndHeaders, 1, 0x82, 0x00, 3, 'a'), BlockMalformed},
		{"empty block", raw(frameHeaders, flagEndHeaders, 1), PseudoMalformed},
		{"many fields", request(usual(strings.Split(strings.Repeat("a,b,", defaultFields-4), ",")[:2*(defaultFields-4)]...)...), accepted},
		{"more fields", request(usual(strings.Split(strings.Repeat("a,b,", defaultFields-3), ",")[:2*(defaultFields-3)]...)...), TooManyFields},
		{"pseudo behind", request("x", "y", ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"), PseudoMalformed},
		{"pseudo twice", request(usual(":path", "/b")...), PseudoMalformed},
		{"pseudo empty", request(usual(":path", "")...), PseudoMalformed},
		{"pseudo unknown", request(usual(":protocol", "websocket")...), PseudoMalformed},
		{"response", request(":status", "200"), PseudoMalformed},
		{"no method", request(usual()[2:]...), PseudoMalformed},
		{"no scheme", request(":method", "GET", ":path", "/", ":authority", "a"), PseudoMalformed},
		{"no path", request(":method", "GET", ":scheme", "http", ":authority", "a"), PseudoMalformed},
		{"CONNECT", request(":method", "CONNECT", ":authority", "a:1"), MethodMalformed},
		{"method", request(":method", "G T", ":scheme", "http", ":path", "/", ":authority", "a"), MethodMalformed},
		{"no host", request(":method", "GET", ":scheme", "http", ":path", "/"), HostMissing},
		{"authority", request(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a@b"), HostMalformed},
		{"contradiction", request(usual("host", "b")...), HostContradicts},
		{"malformed host beside", request(usual("host", "b/")...), HostMalformed},
		{"two hosts", request(usual("host", "a.example", "host", "a.example")...), HostRepeated},
		{"upper case", request(usual("Host", "a")...), FieldMalformed},
		{"space in name", request(usual("a b", "a")...), FieldMalformed},
		{"no name", request(usual("", "a")...), FieldMalformed},
		{"space around host", request(":method", "GET", ":scheme", "http", ":path", "/", "host", " a"), HostMalformed},
		{"CRLF in value", request(usual("x", "a\r\nhost: b")...), ControlCharacter},
		{"NUL in path", request(":method", "GET", ":scheme", "http", ":path", "/\x00", ":authority", "a"), ControlCharacter},
		{"absolute path", request(":method", "GET", ":scheme", "http", ":path", "http://a/", ":authority", "a"), TargetMalformed},
		{"space in path", request(":method", "GET", ":scheme", "http", ":path", "/a b", ":authority", "a"), TargetMalformed},
		{"dot segment", request(":method", "GET", ":scheme", "http", ":path", "/../a", ":authority", "a"), PathAmbiguous},
		{"nothing", nil, incomplete},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := checkPieces(t, p, c.b)
			wantReason(t, err, c.want)
		})
	}
}

// TestHTTP2Golden reads what curl sent once.
func TestHTTP2Golden(t *testing.T) {
	b, err := os.ReadFile("testdata/curl-7.88.h2")
	if err != nil {
		t.Fatal(err)
	}
	p := newParser(t, Config{Mode: HTTP2})
	key, err := checkPieces(t, p, b)
	want := view{Method: "GET", Host: "shop.example", Path: "/a/b", Len: len(b), Fields: []string{"user-agent: curl/7.88.1", "accept: */*", "cookie: a=1; srv=b2"}}
	if diff := cmp.Diff(want, viewOf(key), byValue); err != nil || diff != "" {
		t.Fatalf("%v (-want +got)\n%s", err, diff)
	}
	checkPrefixes(t, p, b, key)
}

func TestAwaitsServer(t *testing.T) {
	p := newParser(t, Config{Mode: HTTP2})
	c := newConversation()
	c.WriteWindowUpdate(0, 1)
	quiet := c.Len()
	b := c.request(usual()...)
	var g Progress
	for n := range b {
		if _, err := p.Parse(&g, b[:n]); !errors.Is(err, ErrMore) {
			t.Fatal(err)
		}
		if want := n == quiet || n == quiet-frameHeader-4; g.AwaitsServer() != want {
			t.Errorf("%d of %d bytes: AwaitsServer is %v", n, quiet, g.AwaitsServer())
		}
	}
}

// pipeTransport is an HTTP/2 client of x/net whose server is the test.
func pipeTransport(t *testing.T) (*http2.Transport, net.Conn) {
	client, server := net.Pipe()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { client.Close(); server.Close() })
	return &http2.Transport{
		AllowHTTP:      true,
		DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) { return client, nil },
	}, server
}

// readKey peeks until the parser has an answer.
func readKey(t *testing.T, p *Parser, c net.Conn) (Key, error) {
	var g Progress
	b := make([]byte, 0, p.Limit())
	for range p.Limit() {
		n, err := c.Read(b[len(b):cap(b)])
		if err != nil {
			t.Fatal(err)
		}
		b = b[:len(b)+n]
		if key, err := p.Parse(&g, b); !errors.Is(err, ErrMore) {
			checkPieces(t, p, b)
			return key, err
		}
	}
	t.Fatal("no answer")
	return Key{}, nil
}

// What x/net's client sends is read, and what the dispatcher answers is understood.
func TestHTTP2Transport(t *testing.T) {
	transport, server := pipeTransport(t)
	type outcome struct {
		response *http.Response
		err      error
	}
	done := make(chan outcome, 1)
	go func() {
		r, err := http.NewRequest("GET", "http://Shop.Example:81/a/b?c=d", nil)
		if err == nil {
			r.Header.Set("X-Long", strings.Repeat("long ", 2000))
			r.Header.Set("Cookie", "a=1; srv=b2")
			var o outcome
			o.response, o.err = transport.RoundTrip(r)
			done <- o
			return
		}
		done <- outcome{err: err}
	}()
	key, err := readKey(t, newParser(t, Config{Mode: HTTP2}), server)
	if err != nil || key.Method != "GET" || key.Host != "shop.example" || key.Path != "/a/b" {
		t.Fatalf("%+v %v", key, err)
	}
	if v, _ := key.Cookie("srv"); v != "b2" {
		t.Errorf("cookie %q", v)
	}
	go func() {
		// The client's own answers have to go somewhere.
		b := make([]byte, 4096)
		for range 1000 {
			if _, err := server.Read(b); err != nil {
				return
			}
		}
	}()
	if _, err := server.Write(key.Answer(Unavailable)); err != nil {
		t.Fatal(err)
	}
	o := <-done
	if o.err != nil || o.response.StatusCode != 503 {
		t.Errorf("%+v %v", o.response, o.err)
	}
}
