// SPDX-License-Identifier: Apache-2.0

package inspect

import "github.com/rehome-net/rehome/dispatcher/session"

// Parser reads one direction of one signalling flow. It keeps a bounded part of what it has read. It is not safe for concurrent use.
type Parser interface {
	// Feed reads the next bytes of a TCP stream and returns the halves that are complete now. Halves do not depend on how
	// the stream is cut into pieces.
	Feed(b []byte) []Half
	// Datagram reads one UDP datagram. Protocols that have no UDP find nothing in it.
	Datagram(b []byte) []Half
	// Lost says that bytes of the stream are missing here. The parser looks for the next message.
	Lost()
	// Opaque tells whether the stream has become encrypted: nothing more can be read of it.
	Opaque() bool
	// Stats returns what has been counted so far.
	Stats() Stats
}

// Pair joins the halves of one session. It is not safe for concurrent use.
type Pair interface {
	// Add takes a half, of either side; a side's halves in the order in which its parser made them.
	Add(h Half) Outcome
	// Closed says that a signalling connection has ended.
	Closed(flow session.Key) Outcome
}

// Stats counts what a parser has read.
type Stats struct {
	Messages  uint64 // messages that were understood, those that are no half among them
	Malformed uint64 // messages that were not
	Resyncs   uint64 // times that the next message had to be searched for
}
