// SPDX-License-Identifier: Apache-2.0

package wire

import "fmt"

// Split cuts a value into what travels ahead in Chunk frames and the tail that goes into the frame that names it.
func Split(blob Blob, value []byte) (ahead []*Chunk, tail []byte) {
	for len(value) > ChunkSize {
		ahead = append(ahead, &Chunk{Blob: blob, Data: value[:ChunkSize]})
		value = value[ChunkSize:]
	}
	return ahead, value
}

// Assembly puts the chunks of one migration's values together again. The zero value is empty and ready to use.
type Assembly struct {
	state, snapshot, ahead, received []byte
}

// Add appends a chunk, which is copied. A value that would exceed limit bytes is refused with ErrTooLarge.
func (a *Assembly) Add(c *Chunk, limit int) error {
	var p *[]byte
	switch c.Blob {
	case BlobState:
		p = &a.state
	case BlobSnapshot:
		p = &a.snapshot
	case BlobAhead:
		p = &a.ahead
	case BlobReceived:
		p = &a.received
	default:
		return fmt.Errorf("%w: chunk of unknown value %d", ErrMalformed, c.Blob)
	}
	if len(*p)+len(c.Data) > limit {
		return fmt.Errorf("%w: value of more than %d bytes", ErrTooLarge, limit)
	}
	*p = append(*p, c.Data...)
	return nil
}

// State returns the State, whose last part is tail.
func (a *Assembly) State(tail []byte) []byte { return join(a.state, tail) }

// Snapshot returns the snapshot, whose last part is tail.
func (a *Assembly) Snapshot(tail []byte) []byte { return join(a.snapshot, tail) }

// Ahead returns the State that was sent ahead, whose last part is tail.
func (a *Assembly) Ahead(tail []byte) []byte { return join(a.ahead, tail) }

// TakeState returns the State as far as it has come, and forgets it; TakeAhead does so with what was sent ahead of it.
func (a *Assembly) TakeState() []byte {
	b := a.state
	a.state = nil
	return b
}

// TakeAhead is described at TakeState.
func (a *Assembly) TakeAhead() []byte {
	b := a.ahead
	a.ahead = nil
	return b
}

// Received returns the part of the receive queue that was sent ahead of the freeze.
func (a *Assembly) Received() []byte { return a.received }

func join(head, tail []byte) []byte {
	if len(head) == 0 {
		return tail
	}
	return append(head, tail...)
}
