// SPDX-License-Identifier: Apache-2.0

package criu

import (
	"fmt"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// MaxPiece is the most data in one Piece, in bytes.
const MaxPiece = 256 << 10

// MaxFiles bounds the files of one image. CRIU makes about 25, and 4 for each process.
const MaxFiles = 1 << 14

// Piece is the next part of one file of an image. A piece without data and pages ends its file.
type Piece struct {
	File string
	Data []byte
	// Pages, if there are any, are what the part consists of: places of pages that were sent ahead, in that order, and LiteralPage for the
	// next page of Data.
	Pages []uint32
}

// Manifest says what an image consists of, so that the receiver knows that nothing is missing, doubled or in the wrong place. It guards
// against mistakes; that nobody else can change an image under way is TLS's part.
type Manifest struct {
	Files uint32
	Bytes uint64
	// Digest is the sum of the digests of all files, which come in no order: xxHash-64 of contents and name.
	Digest uint64
}

// fileDigest sums up one file.
type fileDigest struct {
	bytes uint64
	sum   *xxhash.Digest
}

func newFileDigest() *fileDigest { return &fileDigest{sum: xxhash.New()} }

func (d *fileDigest) add(data []byte) {
	d.bytes += uint64(len(data))
	_, _ = d.sum.Write(data) // never fails
}

// end adds the file to the manifest.
func (m *Manifest) end(name string, d *fileDigest) {
	_, _ = d.sum.WriteString(name)
	m.Files++
	m.Bytes += d.bytes
	m.Digest += d.sum.Sum64()
}

// add takes in what another one has.
func (m *Manifest) add(o Manifest) {
	m.Files += o.Files
	m.Bytes += o.Bytes
	m.Digest += o.Digest
}

// check returns an error, which is ErrImage, unless the manifests are the same.
func (m Manifest) check(want Manifest) error {
	if m != want {
		return fmt.Errorf("%w: %d files of %d bytes in all have come (digest %x), %d of %d were sent (digest %x)",
			ErrImage, m.Files, m.Bytes, m.Digest, want.Files, want.Bytes, want.Digest)
	}
	return nil
}

// splitRound splits the name of a file into the directory of its round, which is empty for the final dump, and its name there.
func splitRound(name string) (round, file string) {
	if len(name) > 2 && name[0] >= '1' && name[0] <= '0'+maxTrackedRounds && name[1] == '/' {
		return name[:1], name[2:]
	}
	return "", name
}

// imageSuffix ends the names of an image's files.
const imageSuffix = ".img"

// validName reports whether an image's file may have this name: it comes from another host, and becomes a path.
func validName(name string) bool {
	_, name = splitRound(name)
	return name != "" && len(name) <= 255 && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\x00") && strings.HasSuffix(name, imageSuffix)
}
