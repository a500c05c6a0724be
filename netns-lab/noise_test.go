// SPDX-License-Identifier: Apache-2.0

package netnslab_test

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

func TestNoiseReadsTheSameEverywhere(t *testing.T) {
	f := netnslab.Noise{Seed: 7, Size: 3*4096 + 5}
	var whole bytes.Buffer
	sum, err := f.WriteSum(&whole)
	if err != nil {
		t.Fatal(err)
	}
	if sum != sha256.Sum256(whole.Bytes()) {
		t.Error("sum differs from the bytes written")
	}
	// TestReader tries all kinds of reads and seeks.
	if err := iotest.TestReader(f.Reader(), whole.Bytes()); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{0, 1, 4095, 4096, 4097, 8191, f.Size - 1} {
		got := make([]byte, f.Size-off)
		n, err := f.ReadAt(got, off)
		if n != len(got) || err != nil || !bytes.Equal(got, whole.Bytes()[off:]) {
			t.Errorf("from %d: %d bytes, %v", off, n, err)
		}
	}
	if _, err := f.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("read before the start")
	}
	if n, err := f.ReadAt(make([]byte, 1), f.Size); n != 0 || err != io.EOF { //nolint:errorlint // io.ReaderAt promises it bare
		t.Errorf("at the end: %d, %v", n, err)
	}
}

func TestNoiseIsNoise(t *testing.T) {
	const size = 1 << 20
	var a, b, packed bytes.Buffer
	if _, err := (netnslab.Noise{Seed: 1, Size: size}).WriteTo(&a); err != nil {
		t.Fatal(err)
	}
	if _, err := (netnslab.Noise{Seed: 2, Size: size}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two seeds, one file")
	}
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(a.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if packed.Len() < size {
		t.Errorf("%d bytes are packed into %d", size, packed.Len())
	}
}

// The content is part of what scenarios print: a new version of Go must not change it unnoticed.
func TestNoiseIsStable(t *testing.T) {
	sum, err := netnslab.Noise{Seed: 1, Size: 10_000}.SHA256()
	if err != nil {
		t.Fatal(err)
	}
	const want = "530227234a7226265fc581eb132543c87ae2dd46f328f5177f0ce553e297a30a"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("sum %s, want %s", got, want)
	}
}

func BenchmarkNoise(b *testing.B) {
	f := netnslab.Noise{Seed: 1, Size: 1 << 30}
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	var off int64
	for b.Loop() {
		if _, err := f.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
		off = (off + int64(len(buf))) % f.Size
	}
}

func ExampleNoise() {
	// A server that took over at byte 5000 sends what the first one would have sent.
	file := netnslab.Noise{Seed: 1, Size: 10_000}
	rest := io.NewSectionReader(file, 5000, file.Size-5000)
	n, err := io.Copy(io.Discard, rest)
	fmt.Println(n, err)
	// Output: 5000 <nil>
}
