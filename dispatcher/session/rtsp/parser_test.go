// SPDX-License-Identifier: Apache-2.0

package rtsp

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
	return session.Key{Client: netip.MustParseAddrPort("192.0.2.7:40001"), Server: netip.MustParseAddrPort("203.0.113.10:554"), Protocol: 6}
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

const setup = "SETUP rtsp://cam/1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP;unicast;client_port=50000-50001\r\n\r\n"

// TestLimits sends what is just within and just beyond each limit, and then a message that must be read.
func TestLimits(t *testing.T) {
	c := Config{Limits: Limits{Line: 256, Fields: 8, Body: 100}}
	for _, test := range []struct {
		name   string
		stream string
		want   inspect.Stats
		halves int
	}{
		{"nothing", "", inspect.Stats{Messages: 1}, 1},
		{"empty lines", "\r\n\n\r\n", inspect.Stats{Messages: 1}, 1},
		{"fields", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n" + strings.Repeat("A: b\r\n", 7) + "\r\n", inspect.Stats{Messages: 2}, 1},
		{
			"a field too many", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n" + strings.Repeat("A: b\r\n", 8) + "\r\n",
			inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1},
			1,
		},
		{"a long line", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nA: " + strings.Repeat("b", 300) + "\r\n\r\n", inspect.Stats{Messages: 2}, 1},
		{
			"a long line that matters", "SETUP * RTSP/1.0\r\nCSeq: 1\r\nTransport: " + strings.Repeat("b", 300) + "\r\n\r\n",
			inspect.Stats{Messages: 1, Malformed: 1},
			1,
		},
		{
			"a long field that matters, in lines", "SETUP * RTSP/1.0\r\nCSeq: 1\r\nTransport: a" + strings.Repeat("\r\n "+strings.Repeat("b", 240), 6) + "\r\n\r\n",
			inspect.Stats{Messages: 2},
			2,
		},
		{
			"a long start line", "OPTIONS " + strings.Repeat("b", 300) + " RTSP/1.0\r\nCSeq: 1\r\n\r\n",
			inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1},
			1,
		},
		{"a body", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 100\r\n\r\n" + strings.Repeat("\n", 100), inspect.Stats{Messages: 2}, 1},
		{
			"a large body", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 101\r\n\r\n" + strings.Repeat("\n", 101),
			inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1},
			1,
		},
		{
			"two lengths", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
			inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1},
			1,
		},
		{"two numbers", "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\nCSeq: 2\r\n\r\n", inspect.Stats{Messages: 1, Malformed: 1}, 1},
		{"no number", "OPTIONS * RTSP/1.0\r\n\r\n", inspect.Stats{Messages: 1, Malformed: 1}, 1},
		{"another version", "OPTIONS * RTSP/3.0\r\nCSeq: 1\r\n\r\n", inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1}, 1},
		{"another protocol", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", inspect.Stats{Messages: 1, Malformed: 1, Resyncs: 1}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newParser(t, c, inspect.Client)
			halves := p.Feed([]byte(test.stream + setup))
			if d := cmp.Diff(test.want, p.Stats()); d != "" {
				t.Errorf("counts (-want +got):\n%s", d)
			}
			if len(halves) != test.halves || halves[len(halves)-1].Streams[0].RTP.Port() != 50000 {
				t.Errorf("halves %+v, want %d", halves, test.halves)
			}
		})
	}
}

// TestBounded sends a stream that never ends a line, a head or a frame, and looks at what is kept.
func TestBounded(t *testing.T) {
	for name, piece := range map[string]string{
		"a line":     "x",
		"a fold":     " x: " + strings.Repeat("y", 200) + "\r\n",
		"transports": "Transport: RTP/AVP;unicast,RTP/AVP;unicast,RTP/AVP;unicast,RTP/AVP;unicast\r\n",
	} {
		p := newParser(t, Config{Limits: Limits{Fields: 1024}}, inspect.Client)
		p.Feed([]byte("SETUP * RTSP/1.0\r\nTransport: a\r\n"))
		for range 1000 {
			p.Feed([]byte(piece))
		}
		if n := len(p.msg.streams); n > inspect.MaxStreams {
			t.Errorf("%s: %d streams", name, n)
		}
		if n := cap(p.msg.pending); n > 2*(maxFolded+defaultLine) {
			t.Errorf("%s: %d bytes kept", name, n)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{Limits: Limits{Line: 10}},
		{Limits: Limits{Fields: 1}},
		{Limits: Limits{Body: -1}},
		{Limits: Limits{Pending: -1}},
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

func TestDatagram(t *testing.T) {
	if h := newParser(t, Config{}, inspect.Client).Datagram([]byte(setup)); h != nil {
		t.Errorf("halves of a datagram: %+v", h)
	}
}

// FuzzParser holds that any bytes make the same halves however they are cut, that all halves can be encoded, and that a
// message is found after them once a line has ended.
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
		pair, err := NewPair(Config{Limits: Limits{Pending: 2, Flows: 4}})
		if err != nil {
			t.Fatal(err)
		}
		inspecttest.Consistent(t, pair, halves)
		p := newParser(t, Config{}, side)
		if p.Feed(stream); p.Opaque() {
			return
		}
		p.Lost()
		p.Feed([]byte("\r\n"))
		if got := p.Feed([]byte(setup)); len(got) != 1 || got[0].Method != inspect.Setup {
			t.Fatalf("after the loss: %+v", got)
		}
	})
}
