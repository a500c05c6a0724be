// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// PageSize is the unit of memory in an image, in bytes.
const PageSize = 4096

// LiteralPage stands in Piece.Pages for a page that Data holds.
const LiteralPage = ^uint32(0)

// aheadFile is the name under which memory travels that is sent ahead of the freeze. It is no file of the image.
const aheadFile = "ahead.img"

// Ahead remembers which pages of memory the target has already, so that the freeze has to wait only for those that have changed. Kernels
// that track changes (soft-dirty) are rare; pages are known again by their contents instead. Two pages with the same 64-bit sum and
// other contents, of which there is one in about 10^10 moves of a gigabyte, are found out by the manifest's digest, and end the move.
type Ahead struct {
	seed  maphash.Seed
	known map[uint64]uint32 // by the sum of a page: its place in what was sent ahead
	limit int
}

// NewAhead returns one for a target with room for so many bytes.
func NewAhead(room uint64) *Ahead {
	return &Ahead{seed: maphash.MakeSeed(), known: make(map[uint64]uint32), limit: int(min(room/PageSize, uint64(LiteralPage)-1))}
}

// Pages returns how many pages have been sent ahead.
func (a *Ahead) Pages() int { return len(a.known) }

// add takes in memory of whole pages that the tree has now, and sends those pages that the target does not have. It reports how many that
// were.
func (a *Ahead) add(memory []byte, sink func(Piece) error) (int, error) {
	var send []byte
	added := 0
	for page := range slices.Chunk(memory, PageSize) {
		sum := maphash.Bytes(a.seed, page)
		if _, ok := a.known[sum]; ok || len(a.known) >= a.limit {
			continue
		}
		a.known[sum] = uint32(len(a.known))
		send = append(send, page...)
		added++
	}
	if added == 0 {
		return 0, nil
	}
	return added, sink(Piece{File: aheadFile, Data: send})
}

// shorten returns a piece of a file of memory as one that names the pages which the target has. A part of a page stays as it is.
func (a *Ahead) shorten(p Piece) Piece {
	if a == nil || len(a.known) == 0 || len(p.Data)%PageSize != 0 {
		return p
	}
	short := Piece{File: p.File}
	for page := range slices.Chunk(p.Data, PageSize) {
		at, ok := a.known[maphash.Bytes(a.seed, page)]
		if !ok {
			at = LiteralPage
			short.Data = append(short.Data, page...)
		}
		short.Pages = append(short.Pages, at)
	}
	if len(short.Data) == len(p.Data) {
		return p
	}
	return short
}

// check reports whether a piece's pages and data fit together.
func (p Piece) check() error {
	literal := 0
	for _, at := range p.Pages {
		if at == LiteralPage {
			literal++
		}
	}
	if len(p.Pages) > 0 && literal*PageSize != len(p.Data) || len(p.Pages)*PageSize > MaxPiece || len(p.Data) > MaxPiece {
		return fmt.Errorf("%w: %d pages, and %d bytes for %d of them", ErrImage, len(p.Pages), len(p.Data), literal)
	}
	return nil
}
