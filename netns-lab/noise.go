// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// noiseBlock is the unit in which noise is made: each block comes from the seed and its number alone.
const noiseBlock = 4096

// Noise is an incompressible pseudo-random file of a given size that needs no disk. Every byte is a function of Seed and its position, so a server that is given
// a position goes on where another stopped. The zero value is an empty file.
type Noise struct {
	// Seed chooses the content.
	Seed uint64
	// Size is the length in bytes.
	Size int64
}

// ReadAt implements io.ReaderAt. It is safe for concurrent use.
func (f Noise) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("noise: offset %d: want none below 0", off)
	}
	if off >= f.Size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > f.Size-off {
		p = p[:f.Size-off]
		eof = io.EOF
	}
	n := 0
	for n < len(p) {
		block, within := off/noiseBlock, int(off%noiseBlock)
		var c int
		if within == 0 && len(p)-n >= noiseBlock {
			c = noiseBlock
			f.fill(p[n:n+c], block)
		} else {
			var scratch [noiseBlock]byte
			f.fill(scratch[:], block)
			c = copy(p[n:], scratch[within:])
		}
		n += c
		off += int64(c)
	}
	return n, eof
}

func (f Noise) fill(p []byte, block int64) {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], f.Seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(block))
	_, _ = rand.NewChaCha8(key).Read(p) // it never fails
}

// Reader returns a reader of the whole file that can seek.
func (f Noise) Reader() *io.SectionReader { return io.NewSectionReader(f, 0, f.Size) }

// SHA256 returns the sum of the whole file. It costs about a second per GiB.
func (f Noise) SHA256() ([sha256.Size]byte, error) { return f.copyTo(io.Discard) }

// WriteTo implements io.WriterTo: it writes the whole file.
func (f Noise) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f.Reader()}, make([]byte, 64*noiseBlock))
}

// WriteSum writes the whole file and returns its SHA-256.
func (f Noise) WriteSum(w io.Writer) ([sha256.Size]byte, error) { return f.copyTo(w) }

func (f Noise) copyTo(w io.Writer) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if _, err = f.WriteTo(io.MultiWriter(h, w)); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}
