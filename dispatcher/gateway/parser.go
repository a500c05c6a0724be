// SPDX-License-Identifier: Apache-2.0

package gateway

import "github.com/rehome-net/rehome/dispatcher/session"

// Mode is the protocol of a service's signalling, as the dispatcher's configuration names it.
type Mode string

// Modes.
const (
	ModeRTSP Mode = "rtsp" // RTSP 1.0 and 2.0 over TCP
	ModeSIP  Mode = "sip"  // SIP over UDP and TCP
	ModeFTP  Mode = "ftp"  // FTP control connections
)

// Parser reads what a server says on one flow. Implementations are pure and bound their memory.
type Parser interface {
	// Parse takes the next bytes of a TCP stream, in any division, or one whole datagram, and returns the encoded halves that it has
	// completed. It keeps no reference to b.
	Parse(b []byte) [][]byte
	// Gap says that bytes of the stream are missing before the next ones: the parser looks for a place where it can begin again.
	Gap()
	// Opaque reports that nothing more can be read on this flow, as on an FTP control connection after AUTH TLS.
	Opaque() bool
}

// Protocols returns a parser for a flow of a service, or nil when there is none for the mode. The flow may have begun before; its next bytes are the
// beginning of a segment, which as a rule is that of a message.
type Protocols func(mode Mode, flow session.Key) Parser
