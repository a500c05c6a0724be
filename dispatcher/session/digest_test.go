// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math/rand/v2"
	"testing"
)

// TestDigest holds that a digest depends on each bit of a tuple and on the keys.
func TestDigest(t *testing.T) {
	h := newHasher()
	var base tuple
	key := benchKey(0)
	base.pack(&key)
	seen := map[uint32]string{h.tuple(&base): "nothing"}
	change := func(what string, v tuple) {
		d := h.tuple(&v)
		if other, ok := seen[d]; ok {
			t.Errorf("changing %s gives the digest of changing %s", what, other)
		}
		seen[d] = what
	}
	for i := range 64 {
		bit := uint64(1) << i
		v := base
		v.from.high ^= bit
		change("the client's first half", v)
		v = base
		v.from.low ^= bit
		change("the client's second half", v)
		v = base
		v.to.high ^= bit
		change("the server's first half", v)
		v = base
		v.to.low ^= bit
		change("the server's second half", v)
	}
	for i := range 16 {
		bit := uint16(1) << i
		v := base
		v.clientPort ^= bit
		change("the client's port", v)
		v = base
		v.serverPort ^= bit
		change("the server's port", v)
		v = base
		v.protocol ^= bit
		change("the protocol", v)
	}
	same := 0
	for range 8 {
		if other := newHasher(); other.tuple(&base) == h.tuple(&base) {
			same++
		}
	}
	if same > 2 {
		t.Errorf("%d of 8 hashers give the same digest", same)
	}
}

// TestDigestSpreads holds that flows which have much in common fill the buckets as evenly as numbers drawn at random.
func TestDigestSpreads(t *testing.T) {
	const n = 100_000
	random := rand.New(rand.NewPCG(1, 2))
	h := newHasher()
	digest := func(c, s address, client, server uint16) uint32 {
		return h.tuple(&tuple{c, s, ends{client, server, protocolUDP}})
	}
	v4 := func(low uint32) address { return address{0, mapped<<32 | uint64(low)} }
	want := strays(t, n, func(int) uint32 { return random.Uint32() })
	for what, digestOf := range map[string]func(i int) uint32{
		"neighbouring clients": func(i int) uint32 { return digest(v4(0x0a000000+uint32(i)), v4(1), 5004, 554) },
		"networks":             func(i int) uint32 { return digest(v4(uint32(i)<<12), v4(1), 5004, 554) },
		"even ports":           func(i int) uint32 { return digest(v4(uint32(i>>14)), v4(1), uint16(2*i), 6970) },
		"IPv6 networks":        func(i int) uint32 { return digest(address{uint64(i) << 16, 1}, address{1, 1}, 5004, 554) },
		"IPv6 hosts":           func(i int) uint32 { return digest(address{1, uint64(i)}, address{1, 1}, 5004, 554) },
		"addresses alone":      func(i int) uint32 { return h.address(v4(uint32(i))) },
	} {
		if got := strays(t, n, digestOf); got > want*3/2 {
			t.Errorf("%s: %d of %d are not at home; %d of numbers drawn at random", what, got, n, want)
		}
	}
}

// strays counts the records of a full index that are not at home, once for each bucket that they have passed.
func strays(t *testing.T, n int, digest func(i int) uint32) (passed int) {
	t.Helper()
	var x index
	if err := x.reserve(n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { freed(t, &x) })
	for i := range n {
		x.add(digest(i), uint32(i+1))
	}
	for i := range x.buckets {
		passed += int(x.buckets[i].passed)
	}
	return passed
}
