// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"
)

// VectorSize is the length of a load vector's body in bytes.
const VectorSize = 24

// MaxInterval is the longest interval between load vectors.
const MaxInterval = time.Minute

// Part is one of the resources that a load vector tells of.
type Part uint8

// Parts (SARA 29). What each is made of stands in agent/report.
const (
	CPU         Part = iota // share of the processors' time in use
	Memory                  // share of memory in use
	Network                 // share of the memory for network buffers in use
	IO                      // share of the time in which somebody waited for a disk
	Backlog                 // share of the listening sockets' queues in use, of the fullest
	Application             // what the application says of itself
	Parts                   // how many there are
)

// String returns the part's name, as configurations have it.
func (p Part) String() string {
	names := [Parts]string{"cpu", "memory", "network", "io", "backlog", "application"}
	if p < Parts {
		return names[p]
	}
	return fmt.Sprintf("part %d", uint8(p))
}

// Unknown is the value of a part that the host cannot tell.
const Unknown Share = math.MaxUint16

// Share is a part of a load vector in 1/10,000 of what the host has: 0 to 10,000, or Unknown.
type Share uint16

const whole Share = 10_000

// ShareOf returns x, 0 to 1, as a Share. What lies outside is cut off; NaN is Unknown.
func ShareOf(x float64) Share {
	if math.IsNaN(x) {
		return Unknown
	}
	return Share(math.Round(min(max(x, 0), 1) * float64(whole)))
}

// Float returns the share as a number from 0 to 1; ok is false when it is unknown.
func (s Share) Float() (x float64, ok bool) {
	if s > whole {
		return 0, false
	}
	return float64(s) / float64(whole), true
}

// Vector is a host's load at one moment (SARA 29).
type Vector struct {
	// Host is the same as in heartbeats.
	Host uint32
	// Seq is one more than the last vector's, modulo 65536.
	Seq uint16
	// Interval is the time to the next vector, the paper's delta; at least 1 ms, at most MaxInterval.
	Interval time.Duration
	// Sessions are the connections that the host serves, as far as it knows.
	Sessions uint32
	// Shares are the parts.
	Shares [Parts]Share
}

// Weights say how much each part counts, 0 to 1.
type Weights [Parts]float64

// EvenWeights count every part fully.
func EvenWeights() Weights { return Weights{1, 1, 1, 1, 1, 1} }

// Load returns the vector as one number, the paper's l: the largest of the parts, each times its weight. A server is as loaded as what
// it runs out of first; a mean would show one whose processors are at their limit, and all else idle, as hardly loaded. Give a
// part that is always high, such as a database's memory, a lower weight. ok is false when no part that counts is known.
func (v *Vector) Load(w Weights) (l float64, ok bool) {
	for p, s := range v.Shares {
		if x, known := s.Float(); known && w[p] > 0 {
			l, ok = max(l, w[p]*x), true
		}
	}
	return min(l, 1), ok
}

func (v Vector) appendBody(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, v.Host)
	b = binary.BigEndian.AppendUint16(b, v.Seq)
	b = binary.BigEndian.AppendUint16(b, uint16(min(v.Interval, MaxInterval)/time.Millisecond))
	b = binary.BigEndian.AppendUint32(b, v.Sessions)
	for _, s := range v.Shares {
		b = binary.BigEndian.AppendUint16(b, uint16(s))
	}
	return b
}

// ParseVector decodes a load vector's body.
func ParseVector(body []byte) (Vector, error) {
	if len(body) != VectorSize {
		return Vector{}, fmt.Errorf("%w: load vector of %d bytes, want %d", ErrMalformed, len(body), VectorSize)
	}
	v := Vector{
		Host: binary.BigEndian.Uint32(body), Seq: binary.BigEndian.Uint16(body[4:]),
		Interval: time.Duration(binary.BigEndian.Uint16(body[6:])) * time.Millisecond, Sessions: binary.BigEndian.Uint32(body[8:]),
	}
	if v.Interval == 0 || v.Interval > MaxInterval {
		return Vector{}, fmt.Errorf("%w: load vector with an interval of %v, want 1ms to %v", ErrMalformed, v.Interval, MaxInterval)
	}
	for p := range v.Shares {
		s := Share(binary.BigEndian.Uint16(body[12+2*p:]))
		if s > whole && s != Unknown {
			return Vector{}, fmt.Errorf("%w: load vector with %v = %d, want at most %d", ErrMalformed, Part(p), s, whole)
		}
		v.Shares[p] = s
	}
	return v, nil
}
