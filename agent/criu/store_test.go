// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/rehome-net/rehome/netns-lab/labtest"
)

// image writes pieces into a new store and returns it with what they consist of.
func image(t *testing.T, limit int64, pieces ...Piece) (*Store, Manifest, error) {
	t.Helper()
	labtest.RequireRoot(t)
	s, err := NewStore(limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	var m Manifest
	sums := make(map[string]*fileDigest)
	for _, p := range pieces {
		if sums[p.File] == nil {
			sums[p.File] = newFileDigest()
		}
		sums[p.File].add(p.Data)
		if len(p.Data) == 0 {
			m.end(p.File, sums[p.File])
		}
		if werr := s.Write(p); werr != nil && err == nil {
			err = werr
		}
	}
	return s, m, err
}

func TestStore(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	s, m, err := image(t, 1<<20,
		Piece{File: "pages-1.img", Data: data}, Piece{File: "core-1.img", Data: data[:7]}, Piece{File: "pages-1.img", Data: data}, Piece{File: "core-1.img"}, Piece{File: "pages-1.img"},
		Piece{File: "empty.img"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(m); err != nil {
		t.Error(err)
	}
	if s.Bytes() != 20007 || m.Bytes != 20007 || m.Files != 3 {
		t.Errorf("%d bytes, %+v", s.Bytes(), m)
	}
	for what, change := range map[string]func(*Manifest){
		"a file less":    func(m *Manifest) { m.Files-- },
		"a byte more":    func(m *Manifest) { m.Bytes++ },
		"another digest": func(m *Manifest) { m.Digest ^= 1 },
	} {
		other := m
		if change(&other); !errors.Is(s.Check(other), ErrImage) {
			t.Errorf("%s: %v", what, s.Check(other))
		}
	}
}

// TestStoreRefuses writes what no CRIU has sent. Afterwards nothing is right any more.
func TestStoreRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		pieces []Piece
		want   error
	}{
		"a path":           {[]Piece{{File: "../x.img", Data: nil}}, ErrImage},
		"a hidden file":    {[]Piece{{File: ".img", Data: nil}}, ErrImage},
		"another kind":     {[]Piece{{File: "criu.log", Data: []byte("x")}}, ErrImage},
		"no name":          {[]Piece{{File: "", Data: []byte("x")}}, ErrImage},
		"a long name":      {[]Piece{{File: strings.Repeat("x", 300) + ".img", Data: nil}}, ErrImage},
		"twice":            {[]Piece{{File: "a.img", Data: []byte("x")}, {File: "a.img", Data: nil}, {File: "a.img", Data: []byte("y")}}, ErrImage},
		"no room":          {slices.Repeat([]Piece{{File: "a.img", Data: make([]byte, MaxPiece)}}, 8), ErrFull},
		"a large first":    {[]Piece{{File: firstFile, Data: make([]byte, maxFirst+1)}}, ErrImage},
		"too many of them": {many(MaxFiles + 1), ErrImage},
	} {
		s, m, err := image(t, 1<<20+1<<19, test.pieces...)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
		if err := s.Check(m); !errors.Is(err, test.want) {
			t.Errorf("%s: checked: %v", name, err)
		}
	}
	s, m, err := image(t, 1<<20, Piece{File: "a.img", Data: []byte("x")})
	if err != nil || !errors.Is(s.Check(m), ErrImage) {
		t.Errorf("a file without an end: %v, %v", err, s.Check(m))
	}
}

func many(n int) []Piece {
	list := make([]Piece, n)
	for i := range list {
		list[i] = Piece{File: fmt.Sprintf("%d.img", i)}
	}
	return list
}

// TestStoreAhead names pages that were sent ahead.
func TestStoreAhead(t *testing.T) {
	page := func(c byte) []byte { return bytes.Repeat([]byte{c}, PageSize) }
	s, _, err := image(t, 1<<20, Piece{File: aheadFile, Data: append(page('a'), page('b')...)}, Piece{File: aheadFile, Data: page('c')})
	if err != nil {
		t.Fatal(err)
	}
	var want Manifest
	sum := newFileDigest()
	for _, c := range []byte("xbcay") {
		sum.add(page(c))
	}
	want.end("pages-1.img", sum)
	if err := s.Reserve(1 << 19); err != nil {
		t.Fatal(err)
	}
	for _, p := range []Piece{
		{File: "pages-1.img", Data: append(page('x'), page('y')...), Pages: []uint32{LiteralPage, 1, 2, 0, LiteralPage}},
		{File: "pages-1.img"},
	} {
		if err := s.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Check(want); err != nil {
		t.Error(err)
	}
	if err := s.Write(Piece{File: aheadFile, Data: page('z')}); !errors.Is(err, ErrImage) {
		t.Errorf("memory that was sent ahead came late: %v", err)
	}
	if s, _, _ := image(t, 1<<20); !errors.Is(s.Reserve(1<<21), ErrFull) {
		t.Error("more was reserved than there is room for")
	}
	for name, p := range map[string]Piece{
		"not sent":        {File: "pages-2.img", Pages: []uint32{3}},
		"data is missing": {File: "pages-2.img", Pages: []uint32{LiteralPage}},
		"too much data":   {File: "pages-2.img", Pages: []uint32{1}, Data: page('z')},
		"too many pages":  {File: "pages-2.img", Pages: make([]uint32, MaxPiece/PageSize+1)},
		"no whole page":   {File: aheadFile, Data: []byte("half")},
	} {
		s, _, err := image(t, 1<<20, Piece{File: aheadFile, Data: page('a')}, p)
		if !errors.Is(err, ErrImage) || !errors.Is(s.Check(Manifest{}), ErrImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStoreRounds stores images that precede the final one, and wants them linked as CRIU looks for them.
func TestStoreRounds(t *testing.T) {
	file := func(name, data string) []Piece {
		return []Piece{{File: name, Data: []byte(data)}, {File: name}}
	}
	s, m, err := image(t, 1<<20, slices.Concat(file("1/pages-1.img", "first"), file("2/pages-1.img", "second"), file("2/inventory.img", "i"),
		file(parentFile, "2"), file("pages-1.img", "last"))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Check(m); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{
		"/pages-1.img": "last", "/parent/pages-1.img": "second", "/parent/inventory.img": "i", "/parent/parent/pages-1.img": "first",
	} {
		if got, err := os.ReadFile(procFD(s.dir) + path); err != nil || string(got) != want {
			t.Errorf("%s: %q, want %q: %v", path, got, want, err)
		}
	}
	for name, pieces := range map[string][]Piece{
		"a round that is missing":   append(file("1/a.img", "x"), file(parentFile, "3")...),
		"no number":                 append(file("1/a.img", "x"), file(parentFile, "x")...),
		"no rounds":                 file(parentFile, "0"),
		"too many":                  file(parentFile, "9"),
		"a path in a round":         file("1/../a.img", "x"),
		"a directory of its own":    file("7/a.img", "x"),
		"the directory of a round":  file("1/", "x"),
		"a round in a round":        file("1/1/a.img", "x"),
		"what is only at the end":   file("1/a", "x"),
		"the number, said twice":    slices.Concat(file("1/a.img", "x"), []Piece{{File: parentFile, Data: []byte("1")}, {File: parentFile, Data: []byte("1")}}),
		"memory of the other way":   {{File: "1/" + aheadFile, Data: []byte("x")}, {File: "1/" + aheadFile}, {File: "1/" + aheadFile, Data: []byte("x")}},
		"a link in a round's place": slices.Concat(file("1/a.img", "x"), file(parentFile, "1"), file("parent/b.img", "x")),
	} {
		if _, _, err := image(t, 1<<20, pieces...); !errors.Is(err, ErrImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStoreRoundsTakeReservation wants the room that is kept for a file of memory to be there for the rounds.
func TestStoreRoundsTakeReservation(t *testing.T) {
	labtest.RequireRoot(t)
	s, err := NewStore(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Reserve(900 << 10); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Write(Piece{File: "1/pages-1.img", Data: make([]byte, MaxPiece)}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStoreIsClosed(t *testing.T) {
	s, _, _ := image(t, 1<<20)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if err := s.Write(Piece{File: "a.img", Data: []byte("x")}); err == nil {
		t.Error("wrote into a closed store")
	}
}
