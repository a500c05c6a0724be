// SPDX-License-Identifier: Apache-2.0

package inspecttest

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
)

// Transcripts returns the transcripts in testdata.
func Transcripts(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	all := map[string]string{}
	for _, name := range files {
		text, err := os.ReadFile(name) //nolint:gosec // a test's own file
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

// Golden plays every transcript in testdata and compares what comes of it. With update it writes the files anew.
func Golden(t *testing.T, i Inspector, update bool) {
	for name, text := range Transcripts(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			got, err := Play(i, text)
			if err != nil {
				t.Fatal(err)
			}
			if update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil { //nolint:gosec // a source file
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(text, got); d != "" {
				t.Errorf("transcript (-want +got):\n%s", d)
			}
		})
	}
}

// Streams returns what each side of each TCP flow of a transcript sends, up to the first loss.
func Streams(t testing.TB, text string) [][]byte {
	t.Helper()
	_, steps, err := Read(text)
	if err != nil {
		t.Fatal(err)
	}
	streams := map[direction][]byte{}
	var order []direction
	for _, s := range steps {
		d := direction{s.Flow, s.Side}
		if s.Kind == Send && s.Flow.Protocol == protoTCP {
			if streams[d] == nil {
				order = append(order, d)
			}
			streams[d] = append(streams[d], s.Data...)
		}
	}
	var all [][]byte
	for _, d := range order {
		all = append(all, streams[d])
	}
	return all
}

// Datagrams returns the datagrams of a transcript.
func Datagrams(t testing.TB, text string) (all [][]byte) {
	t.Helper()
	_, steps, err := Read(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if s.Kind == Send && s.Flow.Protocol == protoUDP {
			all = append(all, s.Data)
		}
	}
	return all
}

// Comparer lets cmp compare addresses.
func Comparer() cmp.Option { return cmpopts.EquateComparable(session.Key{}, inspect.Stream{}) }

// SameInPieces holds that a stream makes the same halves and the same counts, whole and in pieces: single bytes, at random, and in two at
// every place when it has at most exhaustive bytes. It returns the halves.
func SameInPieces(t testing.TB, newParser func() inspect.Parser, stream []byte, random *rand.Rand, exhaustive int) []inspect.Half {
	t.Helper()
	whole := newParser()
	want := whole.Feed(slices.Clone(stream))
	check := func(pieces ...[]byte) {
		t.Helper()
		parser := newParser()
		var got []inspect.Half
		for _, b := range pieces {
			// The parser must not keep the caller's buffer.
			b = slices.Clone(b)
			got = append(got, parser.Feed(b)...)
			for i := range b {
				b[i] = 0xaa
			}
		}
		if !slices.EqualFunc(want, got, sameHalf) || whole.Stats() != parser.Stats() || whole.Opaque() != parser.Opaque() {
			t.Fatalf("%d pieces, the first of %d bytes: counts %+v, opaque %v; whole %+v, %v; halves (-whole +pieces):\n%s", len(pieces), len(pieces[0]),
				parser.Stats(), parser.Opaque(), whole.Stats(), whole.Opaque(), cmp.Diff(want, got, Comparer()))
		}
	}
	if len(stream) == 0 {
		return want
	}
	check(slices.Collect(slices.Chunk(stream, 1))...)
	for i := 1; i < len(stream) && len(stream) <= exhaustive; i++ {
		check(stream[:i], stream[i:])
	}
	for range 4 {
		var pieces [][]byte
		for rest := stream; len(rest) > 0; {
			n := 1 + random.IntN(min(len(rest), 100))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		check(pieces...)
	}
	return want
}

// sameHalf is quicker than cmp.
func sameHalf(a, b inspect.Half) bool { return reflect.DeepEqual(a, b) }

// Consistent holds that halves survive their encoding, and that a pair which gets them, each as either side's, never installs a flow twice
// nor withdraws one that is not installed.
func Consistent(t testing.TB, pair inspect.Pair, halves []inspect.Half) {
	t.Helper()
	p := player{pair: pair, announced: map[session.Announcement]bool{}}
	add := func(h inspect.Half) {
		if _, err := p.outcome(pair.Add(h)); err != nil {
			t.Fatalf("after %s: %v", Describe(&h), err)
		}
	}
	for _, h := range halves {
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := inspect.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !sameHalf(h, got) {
			t.Fatalf("half (-sent +received):\n%s", cmp.Diff(h, got, Comparer()))
		}
		add(h)
		h.Side = h.Side.Other()
		add(h)
	}
	for _, h := range halves {
		if _, err := p.outcome(pair.Closed(h.Flow)); err != nil {
			t.Fatalf("after the end of %v: %v", h.Flow, err)
		}
	}
}
