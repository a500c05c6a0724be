// SPDX-License-Identifier: Apache-2.0

package inspect

import "github.com/rehome-net/rehome/dispatcher/session"

// Encoder gives the halves of a parser as a gateway sends them.
type Encoder struct {
	parser   Parser
	datagram bool
}

// NewEncoder returns an encoder of what parser finds on flow. With middle the flow began before anybody looked: the parser searches for the
// first message.
func NewEncoder(parser Parser, flow session.Key, middle bool) *Encoder {
	e := &Encoder{parser: parser, datagram: flow.Protocol == protoUDP}
	if middle && !e.datagram {
		parser.Lost()
	}
	return e
}

// Parse takes the next bytes of a TCP stream, or one whole datagram, and returns the halves that it completes, encoded. Nothing of b is
// kept.
func (e *Encoder) Parse(b []byte) (encoded [][]byte) {
	halves := e.parser.Feed
	if e.datagram {
		halves = e.parser.Datagram
	}
	for _, h := range halves(b) {
		// Parsers keep the limits of the encoding; one that fails would be a half that the dispatcher does not understand.
		if message, err := h.Append(nil); err == nil {
			encoded = append(encoded, message)
		}
	}
	return encoded
}

// Gap says that bytes of the stream are missing here.
func (e *Encoder) Gap() { e.parser.Lost() }

// Opaque tells whether nothing more can be read.
func (e *Encoder) Opaque() bool { return e.parser.Opaque() }

// Stats returns what the parser has counted.
func (e *Encoder) Stats() Stats { return e.parser.Stats() }
