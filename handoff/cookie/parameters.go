// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/rehome-net/rehome/tcprepair"
)

// Secret is a key of cookies, of the dispatcher and all its backends. Who has it can open connections from any address.
type Secret [16]byte

// NewSecret returns a random one.
func NewSecret() (s Secret, err error) {
	_, err = rand.Read(s[:])
	return s, err
}

// String hides it from logs.
func (s Secret) String() string { return "secret" }

// GoString hides it from %#v.
func (s Secret) GoString() string { return "cookie.Secret{}" }

// DefaultWindowScale lets a server announce windows of 16 MiB.
const DefaultWindowScale = 8

// Parameters are what the dispatcher and its backends must agree upon. Secret is required; every other zero value works.
//
// To change the secret without losing a connection: give the backends the new one as Also; then the dispatcher the new one as
// Secret and the old one as Also; three periods later, forget the old one everywhere.
type Parameters struct {
	// Secret makes cookies.
	Secret Secret
	// Also is accepted, too, unless it is all zeroes.
	Also Secret
	// WindowScale is what clients are told that the windows of servers are scaled by: 2^WindowScale, at most 14. 0 means DefaultWindowScale.
	WindowScale uint8
}

func (p Parameters) withDefaults() Parameters {
	if p.WindowScale == 0 {
		p.WindowScale = DefaultWindowScale
	}
	return p
}

func (p Parameters) validate() error {
	if p.Secret == (Secret{}) {
		return errors.New("no secret: make one with NewSecret and give it to the dispatcher and all backends")
	}
	if p.WindowScale > 14 {
		return fmt.Errorf("window scale %d: at most 14", p.WindowScale)
	}
	return nil
}

// Report says that a connection could not be made here. The client has heard nothing.
type Report struct {
	Flow   tcprepair.Flow
	Reason Reason
	// Errno is the kernel's, for ReasonKernel.
	Errno uint32
}

// Reason is why a connection could not be made.
type Reason uint32

// Reasons; numbers are those of bpf/cookie.c.
const (
	// ReasonNoListener: nobody listens at the address.
	ReasonNoListener Reason = iota + 1
	// ReasonMPTCP: the kernel makes no plain connection for a listening socket that speaks MPTCP.
	ReasonMPTCP
	// ReasonBacklog: the server does not accept fast enough.
	ReasonBacklog
	// ReasonSyncookies: net.ipv4.tcp_syncookies is 0.
	ReasonSyncookies
	// ReasonTimeWait: an old connection of the same addresses and ports, to which the packet may belong.
	ReasonTimeWait
	// ReasonKernel: the kernel refuses for another reason; Report.Errno says which.
	ReasonKernel
)

func (r Reason) String() string {
	switch r {
	case ReasonNoListener:
		return "no listening socket"
	case ReasonMPTCP:
		return "listening socket speaks MPTCP (Go: net.ListenConfig.SetMultipathTCP(false))"
	case ReasonBacklog:
		return "accept queue of the listening socket is full"
	case ReasonSyncookies:
		return "net.ipv4.tcp_syncookies is 0: set it to 1"
	case ReasonTimeWait:
		return "an old connection of the same addresses and ports is in TIME_WAIT"
	case ReasonKernel:
		return "kernel refuses"
	}
	return fmt.Sprintf("reason %d", uint32(r))
}
