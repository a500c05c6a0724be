// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func pageOf(c byte) []byte { return bytes.Repeat([]byte{c}, PageSize) }

func pagesOf(cs string) (b []byte) {
	for _, c := range []byte(cs) {
		b = append(b, pageOf(c)...)
	}
	return b
}

func TestAheadShortens(t *testing.T) {
	a := NewAhead(1 << 20)
	var sent []byte
	take := func(p Piece) error {
		sent = append(sent, p.Data...)
		return nil
	}
	for _, memory := range []string{"abca", "cd"} {
		if _, err := a.add(pagesOf(memory), take); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(sent, pagesOf("abcd")) || a.Pages() != 4 {
		t.Errorf("%d pages, %d bytes were sent", a.Pages(), len(sent))
	}
	for name, test := range map[string]struct {
		data, want Piece
	}{
		"all known":   {Piece{File: "p", Data: pagesOf("da")}, Piece{File: "p", Pages: []uint32{3, 0}}},
		"some":        {Piece{File: "p", Data: pagesOf("xby")}, Piece{File: "p", Data: pagesOf("xy"), Pages: []uint32{LiteralPage, 1, LiteralPage}}},
		"none":        {Piece{File: "p", Data: pagesOf("xy")}, Piece{File: "p", Data: pagesOf("xy")}},
		"a part":      {Piece{File: "p", Data: []byte("aaa")}, Piece{File: "p", Data: []byte("aaa")}},
		"end of file": {Piece{File: "p"}, Piece{File: "p"}},
	} {
		if d := cmp.Diff(test.want, a.shorten(test.data)); d != "" {
			t.Errorf("%s (-want +got):\n%.300s", name, d)
		}
	}
	if p := (*Ahead)(nil).shorten(Piece{Data: pagesOf("a")}); len(p.Pages) != 0 {
		t.Error("nothing was sent ahead")
	}
}

func TestAheadHasItsLimit(t *testing.T) {
	a := NewAhead(2*PageSize + 1)
	n, err := a.add(pagesOf("abc"), func(Piece) error { return nil })
	if err != nil || n != 2 {
		t.Errorf("%d pages were sent ahead, %v", n, err)
	}
	no := errors.New("no")
	if _, err := NewAhead(1<<20).add(pageOf('a'), func(Piece) error { return no }); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
}

// TestAheadReadsMemory finds a page of this process.
func TestAheadReadsMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: /proc/PID/pagemap")
	}
	memory, err := unix.Mmap(-1, 0, 64*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	mark := slices.Repeat([]byte("a page that nobody else has. "), PageSize)[:PageSize]
	copy(memory[40*PageSize:], mark)
	found := false
	a := NewAhead(1 << 30)
	if err := a.Send([]int{os.Getpid()}, func(p Piece) error {
		for page := range slices.Chunk(p.Data, PageSize) {
			found = found || bytes.Equal(page, mark)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Errorf("not among %d pages", a.Pages())
	}
}

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]bool{
		"7f00000000-7f00002000 rw-p 00000000 00:00 0 [heap]\n":        true,
		"7f00000000-7f00002000 -w-p 00000000 00:00 0\n":               true,
		"7f00000000-7f00002000 r--p 00000000 08:01 7 /usr/lib/x.so\n": false,
		"7f00000000-7f00002000 rw-s 00000000 00:01 7 /dev/zero\n":     false,
		"7f00002000-7f00000000 rw-p\n":                                false,
		"7f00000001-7f00002000 rw-p\n":                                false,
		"x-y rw-p\n":                                                  false,
		"7f00000000 rw-p\n":                                           false,
		"":                                                            false,
	} {
		if m, ok := parseMapping(line); ok != want || ok && (m.from != 0x7f00000000 || m.to != 0x7f00002000) {
			t.Errorf("%q: got %+v, %v", line, m, ok)
		}
	}
}

func FuzzParseMapping(f *testing.F) {
	f.Add("7f00000000-7f00002000 rw-p 00000000 00:00 0 [heap]")
	f.Fuzz(func(t *testing.T, line string) {
		if m, ok := parseMapping(line); ok && (m.from >= m.to || m.from%PageSize != 0) {
			t.Errorf("%q: %+v", line, m)
		}
	})
}
