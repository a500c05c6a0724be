// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// Protocol is a signalling protocol. Its number stands in the codec.
type Protocol uint8

// Protocols.
const (
	RTSP Protocol = iota + 1
	SIP
	FTP

	protocols // one more than the last
)

// String returns the protocol's name as the configuration has it.
func (p Protocol) String() string {
	return name(p, "unknown", "rtsp", "sip", "ftp")
}

// Side says who sent a message. Its number stands in the codec.
type Side uint8

// Sides.
const (
	Client Side = iota + 1
	Server

	sides
)

// String returns "client" or "server".
func (s Side) String() string {
	return name(s, "unknown", "client", "server")
}

// Other returns who received the message.
func (s Side) Other() Side {
	if s == Client {
		return Server
	}
	return Client
}

// Method is what a request asks for. Its number stands in the codec: append only.
type Method uint8

// Methods of all protocols.
const (
	None     Method = iota // an answer whose protocol does not repeat the method (RTSP, FTP)
	Setup                  // RTSP
	Teardown               // RTSP
	Other                  // RTSP: any other request that names a session
	Invite                 // SIP, from here on
	Ack
	Prack
	Update
	Bye
	Cancel
	Port    // FTP, from here on: PORT and EPRT
	Passive // PASV and EPSV
	PassiveAll
	Abort
	Quit
	Opaque // the stream is encrypted from here on, in any protocol: no more halves come of it

	methods
)

// String returns the method's name, lower case.
func (m Method) String() string {
	return name(m, "none", "setup", "teardown", "other", "invite", "ack", "prack", "update", "bye", "cancel",
		"port", "passive", "passive-all", "abort", "quit", "opaque")
}

func name[T ~uint8](n T, names ...string) string {
	if int(n) < len(names) {
		return names[n]
	}
	return names[0]
}

// Half is what one side's message says about the session's flows (SARA 7). Two halves, one of each side, make a flow.
type Half struct {
	Protocol Protocol
	Side     Side
	// Flow carried the message. It is named as the client's packets name it, whoever sent the message.
	Flow   session.Key
	Method Method
	// Status is an answer's code; 0 of a request.
	Status uint16
	// Seq is the number of RTSP's or SIP's CSeq; 0 with FTP, whose answers come in the order of its commands.
	Seq uint32
	// Ack is the CSeq number of the INVITE that a PRACK is about (RFC 3262, 7.2).
	Ack uint32
	// Session is RTSP's session identifier or SIP's Call-ID, as Name makes it. Empty when there is none.
	Session string
	// From and To are SIP's tags, as Name makes them.
	From, To string
	// Target is the Digest of an RTSP request's URI: which of a session's streams it is about.
	Target uint64
	// Timeout is how long the server keeps a silent session: RTSP's timeout parameter, SIP's Session-Expires. Whole
	// seconds; 0 when the message does not say.
	Timeout time.Duration
	// Streams are the flows that the side describes. Of an RTSP request they are alternatives, the best first; of a SIP
	// message they are its session description's media in their order, the rejected ones among them.
	Streams []Stream
}

// Announces tells whether the message describes a flow: the receiver may use it at once, so the dispatcher should know
// it before the message is delivered.
func (h *Half) Announces() bool { return len(h.Streams) > 0 }

// Transport is how a stream travels. Its number stands in the codec: append only.
type Transport uint8

// Transports.
const (
	Rejected    Transport = iota // this side does not want it: a port of 0 in a session description
	RTP                          // RTP and RTCP over UDP
	Datagrams                    // UDP, one flow: T.38 over UDPTL, raw MPEG
	TCP                          // FTP's data connection
	Interleaved                  // within the signalling connection
	Multicast
	Unsupported // anything else

	transports
)

// String returns the transport's name.
func (t Transport) String() string {
	return name(t, "rejected", "rtp", "datagrams", "tcp", "interleaved", "multicast", "unsupported")
}

// Stream is one flow, or a pair of RTP and RTCP, as one side describes it. An address that the side does not say, or says
// as a name, is the zero netip.Addr; a port that it leaves open is 0.
type Stream struct {
	Transport Transport
	// Mux: RTCP shares RTP's port (RFC 5761), if the other side agrees.
	Mux bool
	// Open: the side will send from another port than it describes (ICE chooses it).
	Open bool
	// Pairs is the number of consecutive pairs of ports that the description is about (RFC 8866, 5.14); 0 is 1.
	Pairs uint8
	// RTP and RTCP are where this side receives; of the one flow of Datagrams and TCP, RTP.
	RTP, RTCP netip.AddrPort
	// PeerRTP and PeerRTCP are where this side says the other one receives (RTSP's answer repeats it).
	PeerRTP, PeerRTCP netip.AddrPort
}

// Limits of a half; the codec refuses more, and parsers make none that has more.
const (
	MaxName    = 128 // bytes of Session, From and To
	MaxStreams = 16
)

// Name returns an identifier that fits a half: s itself, or a digest of it when it is longer than MaxName. It is the same on
// every host.
func Name(s string) string {
	if len(s) <= MaxName {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Digest returns a number for an RTSP URI (FNV-1a, 64 bits), the same on every host. Two URIs of one client that collide
// hurt that client only.
func Digest(uri []byte) uint64 {
	h := fnv.New64a()
	h.Write(uri) // a hash's Write does not fail
	return h.Sum64()
}
