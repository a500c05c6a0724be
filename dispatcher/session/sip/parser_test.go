// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/emiago/sipgo/sip"
	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/inspect/inspecttest"
)

var update = flag.Bool("update", false, "write the golden files anew") //nolint:gochecknoglobals // a flag

func inspector() inspecttest.Inspector {
	return inspecttest.Inspector{
		NewParser: func(flow session.Key, side inspect.Side) (inspect.Parser, error) {
			return NewParser(Config{}, flow, side)
		},
		NewPair: func() (inspect.Pair, error) { return NewPair(Config{}) },
	}
}

func testFlow() session.Key {
	return session.Key{Client: netip.MustParseAddrPort("192.0.2.7:40001"), Server: netip.MustParseAddrPort("203.0.113.10:5060"), Protocol: 6}
}

func newParser(t testing.TB, c Config, side inspect.Side) *Parser {
	t.Helper()
	p, err := NewParser(c, testFlow(), side)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTranscripts(t *testing.T) { inspecttest.Golden(t, inspector(), *update) }

// TestPieces cuts what the transcripts send in every way.
func TestPieces(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, text := range inspecttest.Transcripts(t) {
		for _, stream := range inspecttest.Streams(t, text) {
			for _, side := range []inspect.Side{inspect.Client, inspect.Server} {
				inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, side) }, stream, random, 1<<14)
			}
		}
		if t.Failed() {
			t.Fatalf("in %s", name)
		}
	}
}

// TestDatagrams feeds the transcripts' datagrams as a stream as well: with a length in each message, the same comes of them.
func TestDatagrams(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for name, text := range inspecttest.Transcripts(t) {
		if strings.Contains(name, "malformed") {
			continue
		}
		var want []inspect.Half
		var stream []byte
		datagrams := inspecttest.Datagrams(t, text)
		p := newParser(t, Config{}, inspect.Client)
		for _, b := range datagrams {
			want = append(want, p.Datagram(b)...)
			stream = append(stream, b...)
		}
		got := inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, inspect.Client) }, stream, random, 256)
		if d := cmp.Diff(want, got, inspecttest.Comparer()); d != "" {
			t.Errorf("%s: halves (-datagrams +stream):\n%s", name, d)
		}
		if p.Stats().Messages < uint64(len(datagrams)) {
			t.Errorf("%s: %+v of %d", name, p.Stats(), len(datagrams))
		}
	}
}

// invite is a whole message with fields put in front of the others and a body behind.
func invite(fields, body string) string {
	return "INVITE sip:bob@203.0.113.10 SIP/2.0\r\n" + fields + "From: <sip:alice@192.0.2.7>;tag=a1\r\nTo: <sip:bob@203.0.113.10>\r\n" +
		"Call-ID: call@a\r\nCSeq: 1 INVITE\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
}

// TestLimits sends what is just within and just beyond each limit, and then a message that must be read.
func TestLimits(t *testing.T) {
	c := Config{Limits: Limits{Line: 256, Fields: 8, Body: 300}}
	type counts = inspect.Stats
	for _, test := range []struct {
		name     string
		message  string
		halves   int
		stream   counts
		datagram counts
	}{
		{"as it is", invite("", ""), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"pings in front", "\r\n\r\n" + invite("", ""), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"fields", invite("A: b\r\nA: b\r\nA: b\r\n", ""), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"a field too many", invite("A: b\r\nA: b\r\nA: b\r\nA: b\r\n", ""), 0, counts{Messages: 1, Malformed: 1, Resyncs: 1}, counts{Malformed: 1}},
		{"a long line", invite("A: "+strings.Repeat("b", 300)+"\r\n", ""), 1, counts{Messages: 2}, counts{Messages: 1}},
		{
			"a long line that matters", invite("Session-Expires: "+strings.Repeat("1", 300)+"\r\n", ""), 0,
			counts{Messages: 1, Malformed: 1},
			counts{Malformed: 1},
		},
		{
			"a long start line", "OPTIONS " + strings.Repeat("b", 300) + " SIP/2.0\r\nl: 0\r\n\r\n", 0,
			counts{Messages: 1, Malformed: 1, Resyncs: 1},
			counts{Malformed: 1},
		},
		{"a body", invite("", strings.Repeat("\n", 300)), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"a large body", invite("", strings.Repeat("\n", 301)), 0, counts{Messages: 1, Malformed: 1}, counts{Malformed: 1}},
		{
			"a body larger than believed", strings.Replace(invite("", ""), "Length: 0", "Length: 1048577", 1), 0,
			counts{Messages: 1, Malformed: 1, Resyncs: 1},
			counts{Malformed: 1},
		},
		{
			"two lengths", invite("l: 7\r\n", ""), 0,
			counts{Messages: 1, Malformed: 1, Resyncs: 1},
			counts{Malformed: 1},
		},
		{"a field twice", invite("i: another@a\r\n", ""), 0, counts{Messages: 1, Malformed: 1}, counts{Malformed: 1}},
		{"a return in a field", invite("Y: a\rb\r\n", ""), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"a return in a field that matters", invite("Session-Expires: 1\r2\r\n", ""), 0, counts{Messages: 1, Malformed: 1}, counts{Malformed: 1}},
		{"ended by line feeds", strings.ReplaceAll(invite("", ""), "\r\n", "\n"), 1, counts{Messages: 2}, counts{Messages: 1}},
		{"another protocol", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 0, counts{Messages: 1, Malformed: 1, Resyncs: 1}, counts{Malformed: 1}},
		{"RTSP", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", 0, counts{Messages: 1, Malformed: 1, Resyncs: 1}, counts{Malformed: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newParser(t, c, inspect.Client)
			halves := p.Feed([]byte(test.message + strings.Replace(invite("", ""), "call@a", "last@a", 1)))
			if n := len(halves); n != test.halves+1 || halves[n-1].Session != "last@a" {
				t.Errorf("halves %+v, want %d more", halves, test.halves)
			}
			if d := cmp.Diff(test.stream, p.Stats()); d != "" {
				t.Errorf("counts of the stream (-want +got):\n%s", d)
			}
			p = newParser(t, c, inspect.Client)
			if halves := p.Datagram([]byte(test.message)); len(halves) != test.halves {
				t.Errorf("halves of the datagram %+v, want %d", halves, test.halves)
			}
			if d := cmp.Diff(test.datagram, p.Stats()); d != "" {
				t.Errorf("counts of the datagram (-want +got):\n%s", d)
			}
		})
	}
}

// TestOpaque tells a TLS record from a byte that is none, in any pieces.
func TestOpaque(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for stream, opaque := range map[string]bool{
		"\x16\x03\x01":              true,
		"\x17\x03\x03":              true,
		"\r\n\x16\x03\x01":          true,
		invite("", "") + "\x16\x03": true,
		"\x16INVITE":                false,
		"\x16\r\n" + invite("", ""): false,
		"\x18\x03\x01":              false,
		"INVITE sip:\x16\x03 SIP/2.0\r\n\x16\x03\r\n": false,
	} {
		inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, inspect.Client) }, []byte(stream), random, 4096)
		p := newParser(t, Config{}, inspect.Client)
		p.Feed([]byte(stream))
		if p.Opaque() != opaque {
			t.Errorf("%q: %v", stream, p.Opaque())
		}
		p.Lost()
		if got := p.Feed([]byte("\r\n" + invite("", ""))); p.Opaque() != opaque || (len(got) == 0) != opaque {
			t.Errorf("%q, and a loss: %v, %+v", stream, p.Opaque(), got)
		}
	}
}

// TestBounded sends a stream whose head or body never ends, and looks at what is kept.
func TestBounded(t *testing.T) {
	for name, piece := range map[string]string{
		"a line": "x",
		"a fold": " x: " + strings.Repeat("y", 200) + "\r\n",
		"fields": "Call-ID: " + strings.Repeat("y", 200) + "\r\n",
	} {
		p := newParser(t, Config{Limits: Limits{Fields: 1024}}, inspect.Client)
		p.Feed([]byte("INVITE sip:b SIP/2.0\r\nCall-ID: a\r\n"))
		for range 1000 {
			p.Feed([]byte(piece))
		}
		if n := cap(p.head.text) + cap(p.head.line) + cap(p.content); n > 4*(maxFolded+defaultLine) {
			t.Errorf("%s: %d bytes kept", name, n)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{Limits: Limits{Line: 10}},
		{Limits: Limits{Fields: 1}},
		{Limits: Limits{Body: -1}},
		{Limits: Limits{Dialogs: -1}},
		{Limits: Limits{Exchanges: 1}},
		{Limits: Limits{Streams: 1}},
		{Limits: Limits{Flows: 1 << 20}},
	} {
		if _, err := NewParser(c, testFlow(), inspect.Client); err == nil {
			t.Errorf("parser made of %+v", c)
		}
		if _, err := NewPair(c); err == nil {
			t.Errorf("pair made of %+v", c)
		}
	}
}

// FuzzParser holds of any bytes what TestPieces does, as a stream and as a datagram, that all halves can be encoded, that the pair's
// outcomes do not contradict each other, and that a message is found after them once a line has ended. Where the library reads
// the whole of a datagram by itself, it must read the same.
func FuzzParser(f *testing.F) {
	for _, text := range inspecttest.Transcripts(f) {
		for _, stream := range append(inspecttest.Streams(f, text), inspecttest.Datagrams(f, text)...) {
			f.Add(stream, true)
			f.Add(stream, false)
		}
	}
	library := sip.NewParser()
	f.Fuzz(func(t *testing.T, b []byte, client bool) {
		side := inspect.Server
		if client {
			side = inspect.Client
		}
		if len(b) > 4096 {
			return
		}
		random := rand.New(rand.NewPCG(uint64(len(b)), 1))
		halves := inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, side) }, b, random, 256)
		datagram := newParser(t, Config{}, side).Datagram(b)
		pair, err := NewPair(Config{Limits: Limits{Dialogs: 2, Flows: 4, Exchanges: 2}})
		if err != nil {
			t.Fatal(err)
		}
		inspecttest.Consistent(t, pair, append(halves, datagram...))
		p := newParser(t, Config{}, side)
		if p.Feed(b); !p.Opaque() {
			p.Lost()
			p.Feed([]byte("\r\n"))
			if got := p.Feed([]byte(invite("", ""))); len(got) != 1 || got[0].Session != "call@a" {
				t.Fatalf("after the loss: %+v", got)
			}
		}
		if len(datagram) == 1 && !bytes.Contains(b, []byte("\n ")) && !bytes.Contains(b, []byte("\n\t")) && safe(b) {
			compare(t, library, b, &datagram[0])
		}
	})
}

// safe tells datagrams that the library can be given: it makes room for whatever length a message claims. It does not end a line at a
// line feed alone, as many servers do.
func safe(b []byte) bool {
	if bytes.Count(b, []byte("\n")) != bytes.Count(b, []byte("\r\n")) {
		return false
	}
	for line := range bytes.Lines(b) {
		name, value, _ := inspect.Field(line)
		if n, _ := fieldOf(bytes.TrimSpace(name)); n == fieldLength && len(bytes.TrimSpace(value)) > 5 {
			return false
		}
	}
	return true
}

func compare(t *testing.T, library *sip.Parser, b []byte, h *inspect.Half) {
	m, err := library.ParseSIP(b)
	if err != nil || m.CallID() == nil || m.CSeq() == nil {
		return
	}
	if id := inspect.Name(m.CallID().Value()); id != h.Session {
		t.Errorf("Call-ID %q, the library %q", h.Session, id)
	}
	if m.CSeq().SeqNo != h.Seq {
		t.Errorf("CSeq %d, the library %d", h.Seq, m.CSeq().SeqNo)
	}
	if r, ok := m.(*sip.Response); ok != (h.Status != 0) || ok && r.StatusCode != int(h.Status) {
		t.Errorf("status %d, the library %+v", h.Status, r)
	}
}

func BenchmarkDatagram(b *testing.B) {
	for name, message := range map[string]string{
		"INVITE": invite("Via: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\nContact: <sip:alice@192.0.2.7>\r\nContent-Type: application/sdp\r\n",
			"v=0\r\no=- 1 1 IN IP4 192.0.2.7\r\ns=-\r\nc=IN IP4 192.0.2.7\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\n"),
		"OPTIONS": strings.ReplaceAll(invite("Via: SIP/2.0/UDP 192.0.2.7:5060;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n", ""), "INVITE", "OPTIONS"),
		"noise":   strings.Repeat("noise\n", 100),
	} {
		b.Run(name, func(b *testing.B) {
			p := newParser(b, Config{}, inspect.Client)
			datagram := []byte(message)
			b.SetBytes(int64(len(datagram)))
			b.ReportAllocs()
			for b.Loop() {
				p.Datagram(datagram)
			}
		})
	}
}
