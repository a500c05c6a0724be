// SPDX-License-Identifier: Apache-2.0

package cookie

import "testing"

// The reference implementation's vectors (SipHash paper, appendix A, and vectors.h), for messages of whole words: bytes 0, 1, 2, ...
func TestSipHash(t *testing.T) {
	var key Secret
	for i := range key {
		key[i] = byte(i)
	}
	const a, b, c = 0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110
	for _, v := range []struct {
		words []uint64
		want  uint64
	}{
		{nil, 0x726fdb47dd0e0e31},
		{[]uint64{a}, 0x93f5f5799a932462},
		{[]uint64{a, b}, 0x3f2acc7f57c29bdb},
		{[]uint64{a, b, c}, 0xb8ad50c6f649af94},
	} {
		if got := sipHash(key, v.words...); got != v.want {
			t.Errorf("%d words: %#x, want %#x", len(v.words), got, v.want)
		}
	}
}
