// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"encoding/binary"
	"math/bits"
)

// sipHash is SipHash-2-4 (Aumasson, Bernstein 2012) of a message of whole 64-bit words. bpf/cookie.h has the same.
func sipHash(key Secret, words ...uint64) uint64 {
	low, high := binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])
	v := sip{low ^ 0x736f6d6570736575, high ^ 0x646f72616e646f6d, low ^ 0x6c7967656e657261, high ^ 0x7465646279746573}
	for _, m := range words {
		v.word(m)
	}
	v.word(uint64(len(words)*8) << 56)
	v.c ^= 0xff
	for range 4 {
		v.round()
	}
	return v.a ^ v.b ^ v.c ^ v.d
}

type sip struct{ a, b, c, d uint64 }

func (v *sip) word(m uint64) {
	v.d ^= m
	v.round()
	v.round()
	v.a ^= m
}

func (v *sip) round() {
	v.a += v.b
	v.b = bits.RotateLeft64(v.b, 13) ^ v.a
	v.a = bits.RotateLeft64(v.a, 32)
	v.c += v.d
	v.d = bits.RotateLeft64(v.d, 16) ^ v.c
	v.a += v.d
	v.d = bits.RotateLeft64(v.d, 21) ^ v.a
	v.c += v.b
	v.b = bits.RotateLeft64(v.b, 17) ^ v.c
	v.c = bits.RotateLeft64(v.c, 32)
}
