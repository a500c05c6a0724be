// SPDX-License-Identifier: Apache-2.0

package peek

// reader takes fields of a binary message off its front. Once one does not fit, short is set and all that follow are empty.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.rest, r.short = nil, true
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return uint16(b[0])<<8 | uint16(b[1])
	}
	return 0
}

// vector8 takes bytes whose count stands in front in one byte, vector16 in two (RFC 8446, 3.4).
func (r *reader) vector8() []byte  { return r.take(int(r.uint8())) }
func (r *reader) vector16() []byte { return r.take(int(r.uint16())) }
