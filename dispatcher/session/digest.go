// SPDX-License-Identifier: Apache-2.0

package session

import (
	"crypto/rand"
	"encoding/binary"
	"math/bits"
)

// hasher makes digests of up to five numbers. Its keys are secret, so nobody outside can choose what has the same digest (SARA 10).
//
// Numbers are multiplied in pairs, after keys, and both halves of the product count: what Go's maps do on CPUs without AES (wyhash). With AES
// it is as fast to compute, but wants its input in memory, and the CPU waits until that has reached its cache.
type hasher struct {
	keys [7]uint64
	keep uint32 // all ones; tests clear bits in it, to see collisions
}

func newHasher() hasher {
	h := hasher{keep: ^uint32(0)}
	var b [8 * len(h.keys)]byte
	_, _ = rand.Read(b[:]) // never fails
	for i := range h.keys {
		h.keys[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return h
}

func (h *hasher) digest(a, b, c, d, e uint64) uint32 {
	k := &h.keys
	// Each number goes through two products: after one, numbers that follow one another come out at equal distances.
	first, second, third := fold(a^k[0], b^k[1]), fold(c^k[2], d^k[3]), fold(e^k[4], k[5])
	return uint32(fold(first^third, second^k[6])>>32) & h.keep
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

func (h *hasher) tuple(t *tuple) uint32 {
	return h.digest(t.from.high, t.from.low, t.to.high, t.to.low, uint64(t.clientPort)|uint64(t.serverPort)<<16|uint64(t.protocol)<<32)
}

func (h *hasher) address(a address) uint32 { return h.digest(a.high, a.low, 0, 0, 0) }

// sum is for a name's.
func (h *hasher) sum(s *[32]byte) uint32 {
	word := binary.NativeEndian.Uint64
	return h.digest(word(s[:]), word(s[8:]), word(s[16:]), word(s[24:]), 0)
}
