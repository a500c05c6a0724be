// SPDX-License-Identifier: Apache-2.0

package synproxy

// Stats counts what the proxy did: the program since its tables were made, the process since Open.
type Stats struct {
	// Of the program.
	Answered  uint64 // SYNs answered
	Ignored   uint64 // SYNs dropped: with data
	Tiny      uint64 // SYNs left to this host's stack: the client's MSS is below 536 (IPv6: 1220)
	Completed uint64 // handshakes completed by a bare acknowledgement
	Shown     uint64 // packets given to the process
	Repeated  uint64 // bare acknowledgements of undecided connections, swallowed
	Invalid   uint64 // packets with neither a valid cookie nor a connection
	Late      uint64 // copies of packets of connections that were given away, dropped
	Overflow  uint64 // packets dropped: the process does not keep up
	Large     uint64 // packets dropped: larger than 64 KiB

	// Of the process.
	Packets    uint64 // taken from the ring
	Damaged    uint64 // packets with a wrong checksum
	Requests   uint64 // connections whose client has sent something
	Forwarded  uint64 // connections given to nodes; again after Return
	Returned   uint64 // connections that came back
	Local      uint64 // connections given to this host's stack
	Aged       uint64 // of those: the client had waited too long with its first packet for a node
	Slow       uint64 // of those, or reset: incomplete for too long
	Undue      uint64 // connections reset: the decision on them was put off for too long
	Refused    uint64 // connections answered with Decision.Answer
	Reset      uint64 // connections ended by decision
	Aborted    uint64 // connections that their client has reset
	Failed     uint64 // connections that table or stack did not take
	Stragglers uint64 // packets sent on by the process after the decision
	Unsent     uint64 // packets that could not be sent

	// Undecided and Kept are the connections in memory now.
	Undecided, Kept int
}
