// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"fmt"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Request is what a client has sent so far, on a connection that nobody serves as yet.
type Request struct {
	Flow tcprepair.Flow
	// Bytes are what it has sent, from the first on. They are valid until Decide returns.
	Bytes []byte
	// Ended is whether it sends no more.
	Ended bool
	// Negotiated are the options of the connection.
	Negotiated tcprepair.Negotiated
	// Since is when the first packet arrived.
	Since time.Time
	// Returned counts how often a backend could not take the connection (Proxy.Return).
	Returned int
}

// Verb is what to do with a request.
type Verb uint8

// Verbs.
const (
	// Wait for more of it.
	Wait Verb = iota
	// Later: Proxy.Decide will say, within ten seconds. Nothing further is asked about this request.
	Later
	// Forward gives the connection to Decision.Node.
	Forward
	// Local gives the connection to this host's stack.
	Local
	// Answer sends Decision.Answer, which must fit one segment, and ends the connection.
	Answer
	// Reset ends the connection with RST.
	Reset
)

func (v Verb) String() string {
	names := [...]string{"wait", "later", "forward", "local", "answer", "reset"}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("verb %d", uint8(v))
}

// Decision is what becomes of a request.
type Decision struct {
	Verb   Verb
	Node   gate.Node
	Answer []byte
}

// stream puts a client's first segments together. Its zero value is ready to use.
type stream struct {
	packets []*packet // in the order of arrival
	bytes   []byte    // without gaps, from the first on
	ended   bool      // the FIN follows bytes
	held    int       // bytes of payload in packets
}

// Bounds of what is held of one stream. The window that the client was told is smaller.
const (
	maxPackets = 64
	maxHeld    = 64 << 10
)

// add takes a packet in, unless that would be too much; base is the sequence number of the stream's first byte. It says whether
// there is more of the stream than before.
func (s *stream) add(p *packet, base uint32) (grown bool) {
	if len(s.packets) >= maxPackets || s.held+len(p.payload) > maxHeld {
		return false
	}
	for _, q := range s.packets {
		if q.seq == p.seq && len(q.payload) == len(p.payload) && q.fin == p.fin {
			return false // a copy
		}
	}
	s.packets = append(s.packets, p)
	s.held += len(p.payload)
	before, ended := len(s.bytes), s.ended
	// Few packets: looking at all of them again is the simplest way to put them in order.
	for again := true; again && !s.ended; {
		again = false
		for _, q := range s.packets {
			skip := int(int32(base + uint32(len(s.bytes)) - q.seq))
			if skip < 0 || skip > len(q.payload) {
				continue
			}
			if skip < len(q.payload) {
				if s.bytes == nil {
					s.bytes = q.payload[skip:len(q.payload):len(q.payload)] // the common case: no copy
				} else {
					s.bytes = append(s.bytes, q.payload[skip:]...)
				}
				again = true
			}
			if q.fin {
				s.ended = true
				break
			}
		}
	}
	return len(s.bytes) > before || s.ended != ended
}
