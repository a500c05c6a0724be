// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"encoding/binary"
	"net/netip"
)

// Key returns the key of a text, a host or a cookie's value for instance. It is the same everywhere and always: dispatchers
// must agree. Whoever chooses the text can therefore choose the backend.
func Key(text string) uint64 {
	h := uint64(fnvOffset)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * fnvPrime
	}
	return mix(h)
}

// KeyAddr returns the key of a client's address. An IPv4 address that is mapped into IPv6 has the same as by itself, and zones
// do not count.
func KeyAddr(addr netip.Addr) uint64 {
	b := addr.As16()
	return mix(mix(binary.BigEndian.Uint64(b[:8])) ^ binary.BigEndian.Uint64(b[8:]))
}

// FNV-1a for 64 bits.
const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// mix spreads every bit over all 64: the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014). FNV's high bits
// hardly depend on the last bytes.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
