// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"
	"net/netip"
	"time"
)

// ID names a session. It is never zero, and not used again within four thousand million sessions.
type ID uint64

func (id ID) String() string { return fmt.Sprintf("session %d.%d", uint32(id), uint32(id>>32)) }

// Identity is what a flow is to its session (SARA 4).
//
//	Open, Join ──► Signalling
//	Announce ────► Announced ──first packet──► Secondary
type Identity uint8

// Identities.
const (
	Signalling Identity = iota
	Announced
	Secondary
)

func (i Identity) String() string {
	switch i {
	case Signalling:
		return "signalling"
	case Announced:
		return "announced"
	case Secondary:
		return "secondary"
	}
	return fmt.Sprintf("identity %d", uint8(i))
}

// Status is how far a flow has come (SARA 4).
//
//	new ──packet──► established ──silence──► inactive
//	 └───────────────silence─────────────────► │
//	                established ◄──packet──────┘
type Status uint8

// Statuses.
const (
	StatusNew Status = iota
	StatusEstablished
	StatusInactive
)

func (s Status) String() string {
	switch s {
	case StatusNew:
		return "new"
	case StatusEstablished:
		return "established"
	case StatusInactive:
		return "inactive"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Flow is what the table knows of a flow (SARA 4).
type Flow struct {
	Key      Key // with a port of 0 where an announced flow is open
	Session  ID
	Server   Server
	Identity Identity
	Status   Status
	Media    string // as announced; empty for signalling
	// Seen is the timestamp: when it was opened or announced, or its last packet.
	Seen    time.Time
	Timeout time.Duration
}

// Session is what the table knows of a session.
type Session struct {
	ID     ID
	Server Server
	// Client is who opened it: an IPv4 address, or the first address of an IPv6 /64.
	Client netip.Addr
	// Signalling and Media are the numbers of its flows; announced and secondary ones are media.
	Signalling, Media int
	// Expires is when it may be purged, if nothing is seen of any of its flows until then.
	Expires time.Time
}

// String is "udp 198.51.100.7:5004 > 203.0.113.1:6970", with * for an open port.
func (k Key) String() string {
	protocol := fmt.Sprintf("protocol %d", k.Protocol)
	switch k.Protocol {
	case protocolTCP:
		protocol = "tcp"
	case protocolUDP:
		protocol = "udp"
	}
	return protocol + " " + endpoint(k.Client) + " > " + endpoint(k.Server)
}

func endpoint(a netip.AddrPort) string {
	switch {
	case a.Port() != 0:
		return a.String()
	case a.Addr().Is4():
		return a.Addr().String() + ":*"
	}
	return "[" + a.Addr().String() + "]:*"
}
