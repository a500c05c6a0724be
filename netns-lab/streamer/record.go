// SPDX-License-Identifier: Apache-2.0

package streamer

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"
)

// mode is what a session does with its medium.
type mode string

const (
	idle      mode = ""
	playing   mode = "play"
	recording mode = "record"
)

// record is all that a session knows: the State of its connection.
type record struct {
	// Understood counts the bytes that have been read and taken into this record, Input those of them that are no whole request yet.
	Understood uint64 `json:"understood"`
	Input      []byte `json:"input,omitempty"`
	// Reply is being sent; it begins at the connection's count of bytes written, Base.
	Reply []byte `json:"reply,omitempty"`
	Base  uint64 `json:"base,omitempty"`
	// Last means that the connection ends with the reply.
	Last bool `json:"last,omitempty"`

	// Session is the server's name for it, and Call, with SIP, the caller's.
	Session string         `json:"session,omitempty"`
	Call    string         `json:"call,omitempty"`
	Mode    mode           `json:"mode,omitempty"`
	Client  netip.AddrPort `json:"client"` // of RTP; RTCP has the next port
	Server  netip.AddrPort `json:"server"`

	Sent     outgoing `json:"sent"`
	Received incoming `json:"received"`
}

// outgoing is the medium that the server sends.
type outgoing struct {
	SSRC      uint32 `json:"ssrc"`
	Sequence  uint16 `json:"sequence"`  // of the next packet
	Timestamp uint32 `json:"timestamp"` // of the next packet
	// Due is when the next packet is to be sent, Report when the next sender report is.
	Due     time.Time `json:"due"`
	Report  time.Time `json:"report"`
	Packets uint32    `json:"packets"`
}

// incoming is what has come of the client's media.
type incoming struct {
	// RTP and RTCP count datagrams.
	RTP  int `json:"rtp"`
	RTCP int `json:"rtcp"`
	// Next is the sequence number expected. Missing counts the packets that have not come when a later one has; Late those that came behind a
	// later one, and are not missing any more.
	Next    uint16 `json:"next"`
	Missing int    `json:"missing"`
	Late    int    `json:"late"`
}

// take counts a packet of RTP (RFC 3550, A.1, without probation).
func (r *incoming) take(sequence uint16) {
	if r.RTP++; r.RTP == 1 {
		r.Next = sequence + 1
		return
	}
	switch ahead := int16(sequence - r.Next); {
	case ahead >= 0:
		r.Missing += int(ahead)
		r.Next = sequence + 1
	default:
		r.Late++
		r.Missing = max(r.Missing-1, 0)
	}
}

// media reports whether the session has sockets.
func (r *record) media() bool { return r.Client.IsValid() && r.Server.IsValid() }

// control is the address of RTCP beside one of RTP.
func control(rtp netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(rtp.Addr(), rtp.Port()+1) }

// parseRecord reads State.
func parseRecord(state []byte) (record, error) {
	var r record
	if err := json.Unmarshal(state, &r); err != nil {
		return r, fmt.Errorf("state: %w", err)
	}
	switch {
	case r.Mode != idle && r.Mode != playing && r.Mode != recording:
		return r, fmt.Errorf("state: mode %q", r.Mode)
	case r.Mode != idle && !r.media():
		return r, fmt.Errorf("state: %s without addresses", r.Mode)
	case r.Client.IsValid() != r.Server.IsValid() || r.Client.IsValid() && (r.Client.Port()%2 != 0 || r.Server.Port()%2 != 0):
		return r, fmt.Errorf("state: addresses %v and %v", r.Client, r.Server)
	case len(r.Input) > maxRequest || len(r.Reply) > maxRequest:
		return r, fmt.Errorf("state: %d bytes of a request, %d of a reply", len(r.Input), len(r.Reply))
	}
	return r, nil
}
