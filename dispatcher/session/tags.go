// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"math/bits"
)

// tags are a byte of the digest of each of fifteen records; 0: none there. All are compared at once, and no branch depends on where a record stands, so
// the CPU can begin what comes next while it waits for memory.
type tags [perLine]uint8

const (
	perLine = 15
	// fullLine is how many of fifteen places are taken on average when there are as many records as there may be. One in fifteen records is not at
	// home then. More room would cost more than it saves: the smaller the tags' memory, the more of it stays in the CPU's cache.
	fullLine = 13
)

// tagOf returns the end of the digest that does not say where its home is.
func tagOf(digest uint32) uint8 { return max(1, uint8(digest)) }

// homeOf is where the search for a digest begins, among n lines. The digest is taken as a fraction of the whole: no division, and any n will do.
func homeOf(digest uint32, n int) int { return int(uint64(digest) * uint64(n) >> 32) }

// having returns the places that have a tag, one bit for each: see first.
func (t *tags) having(tag uint8) uint64 {
	low := equal(binary.LittleEndian.Uint64(t[:8]), tag)
	high := equal(binary.LittleEndian.Uint64(t[7:])>>8, tag) // its last byte is none
	return low>>7 | high<<8>>14
}

// first returns the first of the places that having has found: bit 8i stands for place i, bit 8i+1 for place 8+i.
func first(places uint64) int {
	bit := bits.TrailingZeros64(places)
	return bit>>3 + bit&1<<3
}

// equal returns the highest bit of each byte of eight that is b.
func equal(eight uint64, b uint8) uint64 {
	const low, ones = 0x7f7f7f7f7f7f7f7f, 0x0101010101010101
	x := eight ^ ones*uint64(b) // the bytes that are meant are 0 now
	return ^((x&low + low) | x | low)
}
