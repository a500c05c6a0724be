// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bytes"
	"slices"
)

// Flags of TCP (RFC 9293, 3.1).
const (
	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
)

// Bounds of what is kept of a stream's segments that came before their turn.
const (
	maxAheadSegments = 32
	maxAheadBytes    = 64 << 10
)

// clientStream puts the segments of one direction of a connection in order. Its zero value begins with the first segment that it is given.
type clientStream struct {
	begun bool
	next  uint32 // the sequence number of the next byte
	ahead []piece
	kept  int // bytes in ahead
}

type piece struct {
	sequence uint32
	data     []byte
}

// add gives feed the bytes whose turn it is, all of them once and in order; lost tells that some are missing before these. The bytes are valid
// until feed returns.
func (c *clientStream) add(sequence uint32, flags uint8, data []byte, feed func(b []byte, lost bool)) {
	if flags&tcpSYN != 0 {
		*c = clientStream{begun: true, next: sequence + 1}
		return // data with a SYN (TCP Fast Open) come again, for the server's SYN-ACK does not take them
	}
	if len(data) == 0 {
		return
	}
	if !c.begun {
		c.begun, c.next = true, sequence
	}
	if int32(sequence-c.next) > 0 {
		c.keep(sequence, data, feed)
		return
	}
	c.take(sequence, data, false, feed)
	c.follow(feed)
}

// take feeds what is new of a piece that does not begin after next.
func (c *clientStream) take(sequence uint32, data []byte, lost bool, feed func([]byte, bool)) {
	old := int(int32(c.next - sequence))
	if old >= len(data) {
		return
	}
	c.next += uint32(len(data) - old)
	feed(data[old:], lost)
}

// follow feeds the kept pieces whose turn it is now.
func (c *clientStream) follow(feed func([]byte, bool)) {
	for len(c.ahead) > 0 && int32(c.ahead[0].sequence-c.next) <= 0 {
		p := c.ahead[0]
		c.ahead = c.ahead[1:]
		c.kept -= len(p.data)
		c.take(p.sequence, p.data, false, feed)
	}
}

// keep keeps a piece for later. When there is no room the gap before the first of them is given up.
func (c *clientStream) keep(sequence uint32, data []byte, feed func([]byte, bool)) {
	at, _ := slices.BinarySearchFunc(c.ahead, sequence, func(p piece, s uint32) int { return int(int32(p.sequence - s)) })
	if at < len(c.ahead) && c.ahead[at].sequence == sequence && len(c.ahead[at].data) >= len(data) {
		return // a repetition
	}
	c.ahead = slices.Insert(c.ahead, at, piece{sequence, bytes.Clone(data)})
	c.kept += len(data)
	for len(c.ahead) > maxAheadSegments || c.kept > maxAheadBytes {
		p := c.ahead[0]
		c.ahead = c.ahead[1:]
		c.kept -= len(p.data)
		if int32(p.sequence-c.next) > 0 {
			c.next = p.sequence
			c.take(p.sequence, p.data, true, feed)
		} else {
			c.take(p.sequence, p.data, false, feed)
		}
		c.follow(feed)
	}
}
