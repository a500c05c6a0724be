// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"time"
)

// Kinds of datagrams. Append-only; another body is another kind.
const (
	kindHeartbeat = 1
	kindVector    = 2
)

const (
	macSize  = 16
	sealSize = 1 + 2 + 8 + macSize
	// MaxSize is the length of the longest datagram in bytes.
	MaxSize = VectorSize + sealSize
)

// Message is what a datagram carries: a Heartbeat or a Vector.
type Message interface {
	appendBody(b []byte) []byte
	kind() byte
	host() uint32
}

func (h Heartbeat) kind() byte   { return kindHeartbeat }
func (h Heartbeat) host() uint32 { return h.Host }
func (v Vector) kind() byte      { return kindVector }
func (v Vector) host() uint32    { return v.Host }

// Sealer makes a sender's datagrams. It is for one goroutine at a time.
type Sealer struct {
	key  Key
	mac  hash.Hash
	last int64 // the last time of sending
}

// NewSealer returns a sealer; the error says what is wrong with the key.
func NewSealer(key Key) (*Sealer, error) {
	if err := key.validate(); err != nil {
		return nil, err
	}
	return &Sealer{key: key, mac: hmac.New(sha256.New, key.Secret)}, nil
}

// Append appends the datagram with a message, sent now, to b. Two datagrams never bear the same time, also if now does not move or goes
// back.
func (s *Sealer) Append(b []byte, m Message, now time.Time) []byte {
	s.last = max(s.last+1, now.UnixNano())
	start := len(b)
	b = m.appendBody(b)
	b = append(b, m.kind())
	b = binary.BigEndian.AppendUint16(b, s.key.ID)
	b = binary.BigEndian.AppendUint64(b, uint64(s.last))
	return append(b, sum(s.mac, b[start:])...)
}

// sum returns the MAC of b.
func sum(mac hash.Hash, b []byte) []byte {
	mac.Reset()
	mac.Write(b) //nolint:errcheck,gosec // a hash does not fail
	return mac.Sum(nil)[:macSize]
}

// opened is a datagram that is well-formed; nothing is known yet of who made it.
type opened struct {
	message Message
	key     uint16
	sent    int64
	signed  []byte
	mac     []byte
}

func parse(b []byte) (opened, error) {
	if len(b) < sealSize {
		return opened{}, fmt.Errorf("%w: %d bytes", ErrMalformed, len(b))
	}
	body, seal := b[:len(b)-sealSize], b[len(b)-sealSize:]
	d := opened{
		key: binary.BigEndian.Uint16(seal[1:]), sent: int64(binary.BigEndian.Uint64(seal[3:])),
		signed: b[:len(b)-macSize], mac: seal[sealSize-macSize:],
	}
	if d.sent < 0 {
		return opened{}, fmt.Errorf("%w: time of sending", ErrMalformed)
	}
	var err error
	switch seal[0] {
	case kindHeartbeat:
		d.message, err = ParseHeartbeat(body)
	case kindVector:
		d.message, err = ParseVector(body)
	default:
		err = fmt.Errorf("%w: kind %d", ErrMalformed, seal[0])
	}
	return d, err
}

func (d *opened) authentic(mac hash.Hash) bool {
	return subtle.ConstantTimeCompare(sum(mac, d.signed), d.mac) == 1
}
