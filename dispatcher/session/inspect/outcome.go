// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"net/netip"
	"time"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// Outcome is what the dispatcher has to do after a half. Withdraw goes before Install.
type Outcome struct {
	// Install are flows that may begin now.
	Install []session.Announcement
	// Withdraw are flows that have been installed and are over: UDP flows at once, begun or not. A TCP flow that has begun is
	// left to its own end, its FIN is on the way; only the promise of one that has not is withdrawn.
	Withdraw []session.Announcement
	// Identity is a name that the session goes by from now on: RTSP's session identifier, SIP's Call-ID. Requests with that
	// name belong to it, whatever connection they come on. Empty: nothing new.
	Identity string
	// Timeout is how long the server keeps the session when it is silent; 0: nothing new.
	Timeout time.Duration
	// Ended: the signalling has ended the session. What it had announced is in Withdraw.
	Ended bool
	// Findings are for counters and logs.
	Findings []Finding
}

// Finding is something that an operator may want to know of.
type Finding struct {
	Reason Reason
	// Address is what the message names, when it is about an address.
	Address netip.AddrPort
}

// Reason says what was found. Its String is fit for a metric's label.
type Reason uint8

// Reasons.
const (
	// Bounce: the client names an address that is not its own, or a port below 1024, as the place where the server shall send
	// or connect to (RFC 2577, 3). Nothing is announced.
	Bounce Reason = iota + 1
	// Elsewhere: the server names an address that is not the virtual one. Its packets do not come by here. FTP's flow
	// is announced all the same, for most clients ignore the address; of others nothing is announced.
	Elsewhere
	// RefusedMulticast: a stream is multicast, which the dispatcher does not serve.
	RefusedMulticast
	// RefusedTransport: a stream is neither UDP nor interleaved, or the sides describe it differently.
	RefusedTransport
	// Encrypted: the signalling goes on encrypted. No flow of it can be announced; keep the client's flows together by
	// its address.
	Encrypted
	// Promised: the client has sent EPSV ALL, and then another command for a data connection (RFC 2428, 4).
	Promised
	// Full: a limit of the pair was reached, and something was forgotten or not announced.
	Full
	// Misplaced: a half of another protocol, or one that the protocol does not have.
	Misplaced
)

// String returns a short name, lower case with hyphens.
func (r Reason) String() string {
	return name(r, "none", "bounce", "elsewhere", "multicast", "transport", "encrypted", "epsv-all", "full", "misplaced")
}

// Found notes a finding that is about no address.
func (o *Outcome) Found(r Reason) { o.FoundAt(r, netip.AddrPort{}) }

// FoundAt notes a finding about an address.
func (o *Outcome) FoundAt(r Reason, a netip.AddrPort) {
	o.Findings = append(o.Findings, Finding{Reason: r, Address: a})
}
