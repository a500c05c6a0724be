// SPDX-License-Identifier: Apache-2.0

package netnslab

import (
	"bytes"
	"fmt"
	"io"
)

// rampPeriod is prime, so that no buffer, page or segment size is a multiple of it: a lost, doubled or shifted block of any usual
// size changes every byte that follows.
const rampPeriod = 251

// rampBlock is how much of the ramp is laid out at once: a multiple of the period.
const rampBlock = rampPeriod * 256

// Ramp is the stream of bytes 0, 1, ... 250, 0, 1, ...; byte n is n mod 251. It is made by NewRamp.
type Ramp struct {
	table []byte // rampBlock bytes and one period more, so that a block can start anywhere in the period
	pos   int64
	end   int64
}

// NewRamp returns the ramp from byte start, size bytes long; a negative size means without end.
func NewRamp(start, size int64) *Ramp {
	end := start + size
	if size < 0 {
		end = -1
	}
	return &Ramp{table: rampTable(), pos: start, end: end}
}

func rampTable() []byte {
	t := make([]byte, rampBlock+rampPeriod)
	for i := range t {
		t[i] = byte(i % rampPeriod)
	}
	return t
}

// Pos returns the position of the next byte.
func (r *Ramp) Pos() int64 { return r.pos }

// Read implements io.Reader.
func (r *Ramp) Read(p []byte) (int, error) {
	if r.end >= 0 {
		if r.pos >= r.end {
			return 0, io.EOF
		}
		p = p[:min(int64(len(p)), r.end-r.pos)]
	}
	n := 0
	for n < len(p) {
		phase := r.pos % rampPeriod
		c := copy(p[n:], r.table[phase:])
		n += c
		r.pos += int64(c)
	}
	return n, nil
}

// MismatchError says where a stream first differs from what it should be. It is an ErrMismatch.
type MismatchError struct {
	// Pos counts bytes from the start of the stream.
	Pos int64
	// Got and Want are the bytes there.
	Got, Want byte
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%v at byte %d: got %#02x, want %#02x", ErrMismatch, e.Pos, e.Got, e.Want)
}

// Unwrap makes errors.Is(err, ErrMismatch) true.
func (*MismatchError) Unwrap() error { return ErrMismatch }

// RampVerifier is an io.Writer that accepts the ramp and nothing else. It is made by NewRampVerifier.
type RampVerifier struct {
	table []byte
	pos   int64
	err   error
}

// NewRampVerifier returns a verifier that expects the ramp from byte start.
func NewRampVerifier(start int64) *RampVerifier {
	return &RampVerifier{table: rampTable(), pos: start}
}

// Pos returns how far the stream was right: the position of the next byte, or of the first difference.
func (v *RampVerifier) Pos() int64 { return v.pos }

// Write implements io.Writer. At the first difference it takes the bytes before it and returns a *MismatchError, then and ever after.
func (v *RampVerifier) Write(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n := 0
	for n < len(p) {
		want := v.table[v.pos%rampPeriod:]
		c := min(len(want), len(p)-n)
		got := p[n : n+c]
		want = want[:c]
		if !bytes.Equal(got, want) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			v.pos += int64(i)
			v.err = &MismatchError{Pos: v.pos, Got: got[i], Want: want[i]}
			return n + i, v.err
		}
		n += c
		v.pos += int64(c)
	}
	return n, nil
}
