// SPDX-License-Identifier: Apache-2.0

package ftp

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

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
	return session.Key{Client: netip.MustParseAddrPort("192.0.2.7:40001"), Server: netip.MustParseAddrPort("203.0.113.10:21"), Protocol: 6}
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

// TestCommands reads one line each.
func TestCommands(t *testing.T) {
	tcp := func(s string) []inspect.Stream {
		return []inspect.Stream{{Transport: inspect.TCP, RTP: netip.MustParseAddrPort(s)}}
	}
	for _, test := range []struct {
		line    string
		method  inspect.Method
		streams []inspect.Stream
		none    bool
		// malformed counts; the others are commands that do not matter
		malformed bool
	}{
		{line: "PORT 192,0,2,7,0,1", method: inspect.Port, streams: tcp("192.0.2.7:1")},
		{line: "port  192,0,2,7,255,255 ", method: inspect.Port, streams: tcp("192.0.2.7:65535")},
		{line: "PORT 192,0,2,007,195,080", method: inspect.Port, streams: tcp("192.0.2.7:50000")},
		{line: "EPRT |2|2001:db8::7|65535|", method: inspect.Port, streams: tcp("[2001:db8::7]:65535")},
		{line: "EPRT |2|::ffff:192.0.2.7|50000|", method: inspect.Port, streams: tcp("192.0.2.7:50000")},
		{line: "EPSV all", method: inspect.PassiveAll},
		{line: "EPSV 1", method: inspect.Passive},
		{line: "PASV", method: inspect.Passive},
		{line: "ABOR", method: inspect.Abort},
		{line: "QUIT", method: inspect.Quit},
		{line: "PORT", none: true, malformed: true},
		{line: "PORT ,,,,,", none: true, malformed: true},
		{line: "PORT 192.0.2.7,1,1", none: true, malformed: true},
		{line: "PORT -1,0,2,7,1,1", none: true, malformed: true},
		{line: "PORT 00192,0,2,7,1,1", none: true, malformed: true},
		{line: "EPRT 1192.0.2.71500001", none: true, malformed: true},
		{line: "EPRT |1|192.0.2.7|50000|x", none: true, malformed: true},
		{line: "EPRT |1|example.com|50000|", none: true, malformed: true},
		{line: "RETR PORT 192,0,2,7,0,1", none: true},
		{line: "NOOP", none: true},
		{line: "PORTS 192,0,2,7,0,1", none: true, malformed: true},
		{line: "", none: true, malformed: true},
		{line: "NO", none: true, malformed: true},
		{line: "EPRT ||||", none: true, malformed: true},
	} {
		p := newParser(t, Config{}, inspect.Client)
		got := p.Feed([]byte(test.line + "\r\n"))
		if test.none {
			if len(got) != 0 || (p.Stats().Malformed == 1) != test.malformed {
				t.Errorf("%q: %+v, %+v", test.line, got, p.Stats())
			}
			continue
		}
		want := []inspect.Half{{Protocol: inspect.FTP, Side: inspect.Client, Flow: testFlow(), Method: test.method, Streams: test.streams}}
		if d := cmp.Diff(want, got, inspecttest.Comparer()); d != "" {
			t.Errorf("%q (-want +got):\n%s", test.line, d)
		}
	}
}

// TestReplies reads a connection's replies up to a last line, which is a 421.
func TestReplies(t *testing.T) {
	for replies, want := range map[string]inspect.Stats{
		"":                                    {Messages: 1},
		"200 ok\r\n":                          {Messages: 2},
		"200\r\n":                             {Messages: 2},
		"200-a\r\n200-b\r\n200 c\r\n":         {Messages: 2},
		"200-a\r\n421 b\r\n 200 c\r\n200\r\n": {Messages: 2},
		"20\r\n":                              {Messages: 1, Malformed: 1},
		"2000 x\r\n":                          {Messages: 1, Malformed: 1},
		"099 x\r\n":                           {Messages: 1, Malformed: 1},
		"700 x\r\n":                           {Messages: 1, Malformed: 1},
		"x00 x\r\n":                           {Messages: 1, Malformed: 1},
		"\r\n":                                {Messages: 1, Malformed: 1},
	} {
		p := newParser(t, Config{}, inspect.Server)
		got := p.Feed([]byte(replies + "421 bye\r\n"))
		if len(got) != 1 || got[0].Status != replyGone || p.Stats() != want {
			t.Errorf("%q: %+v, %+v", replies, got, p.Stats())
		}
	}
	for _, code := range []string{"221", "225", "226"} {
		if got := newParser(t, Config{}, inspect.Server).Feed([]byte(code + "\r\n")); len(got) != 1 {
			t.Errorf("%s without a text: %+v", code, got)
		}
	}
}

// TestLongLine holds that a line beyond the limit is nothing, and the next one is read.
func TestLongLine(t *testing.T) {
	for n := range 6 {
		line := "RETR " + strings.Repeat("x", 128-len("RETR ")-3+n) + "\r\nPASV\r\n"
		p := newParser(t, Config{Limits: Limits{Line: 128}}, inspect.Client)
		if got := p.Feed([]byte(line)); len(got) != 1 || got[0].Method != inspect.Passive {
			t.Errorf("%d bytes: %+v", len(line), got)
		}
	}
	p := newParser(t, Config{Limits: Limits{Line: 128}}, inspect.Server)
	p.Feed([]byte(strings.Repeat("1", 200) + "\r\n227 " + strings.Repeat(" ", 200) + "203,0,113,10,1,1\r\n"))
	if got := p.Stats(); got != (inspect.Stats{Malformed: 2}) {
		t.Errorf("counts %+v", got)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Limits: Limits{Line: 10}}, {Limits: Limits{Line: 1 << 20}}} {
		if _, err := NewParser(c, testFlow(), inspect.Client); err == nil {
			t.Errorf("parser made of %+v", c)
		}
		if _, err := NewPair(c); err == nil {
			t.Errorf("pair made of %+v", c)
		}
	}
}

func TestDatagram(t *testing.T) {
	if h := newParser(t, Config{}, inspect.Client).Datagram([]byte("PASV\r\n")); h != nil {
		t.Errorf("halves of a datagram: %+v", h)
	}
}

// FuzzParser holds that any bytes make the same halves however they are cut, that all halves can be encoded, and that a
// command is found after them once a line has ended.
func FuzzParser(f *testing.F) {
	for _, text := range inspecttest.Transcripts(f) {
		for _, stream := range inspecttest.Streams(f, text) {
			f.Add(stream, true)
			f.Add(stream, false)
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, client bool) {
		side := inspect.Server
		if client {
			side = inspect.Client
		}
		if len(stream) > 2048 {
			return
		}
		random := rand.New(rand.NewPCG(uint64(len(stream)), 1))
		halves := inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, side) }, stream, random, 256)
		pair, err := NewPair(Config{})
		if err != nil {
			t.Fatal(err)
		}
		inspecttest.Consistent(t, pair, halves)
		p := newParser(t, Config{}, inspect.Client)
		p.Feed(stream)
		if p.Opaque() {
			return
		}
		p.Lost()
		p.Feed([]byte("\r\n"))
		if got := p.Feed([]byte("PASV\r\n")); len(got) != 1 || got[0].Method != inspect.Passive {
			t.Fatalf("after the loss: %+v", got)
		}
	})
}
