// SPDX-License-Identifier: Apache-2.0

package sip

import (
	"flag"
	"math/rand/v2"
	"net/netip"
	"testing"

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
				inspecttest.SameInPieces(t, func() inspect.Parser { return newParser(t, Config{}, side) }, stream, random)
			}
		}
		if t.Failed() {
			t.Fatalf("in %s", name)
		}
	}
}
