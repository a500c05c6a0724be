// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// Table is the path's flow table: forward.Forwarder.
type Table interface {
	// Adopt records an owner for a flow that has none.
	Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error)
	// Take changes owners, and records them for flows that have none, whose Change.From is 0.
	Take(changes ...gate.Change) []gate.Changed
}

// Stack makes a connection of this host's own: reqsk.Injector.
type Stack interface {
	Inject(s *tcprepair.Snapshot) error
}

// Config says where a Proxy stands. Interface, Table and Decide are required; every other zero value works.
type Config struct {
	// Interface is the Ethernet interface that clients' packets arrive on. Nodes are reached by it, too.
	Interface string
	// PinPath is a directory on a BPF filesystem, for this proxy alone. What is pinned there outlives the process: SYNs are still
	// answered, and first packets wait in the ring for the next process. Empty: all goes with the process.
	PinPath string
	// Parameters are shared with all backends. Without a secret it goes on with the pinned one, or makes a new one: see Proxy.Parameters.
	Parameters cookie.Parameters
	// Table is where decisions are written down.
	Table Table
	// Stack takes the connections that Decide leaves to this host, and those whose request is too slow or too large. Nil: they are reset.
	Stack Stack
	// Decide says what becomes of a request, each time that more of it has arrived. It is called from one goroutine, must not wait, and must not
	// keep the request's bytes.
	Decide func(Request) Decision
	// Done, if it is set, is told what has become of a decision for Forward: nil, or why the connection was reset instead. It must not call
	// the Proxy.
	Done func(f tcprepair.Flow, to gate.Node, err error)

	// MSS4 and MSS6 are the largest segments that servers take. 0 means what the interface's MTU allows.
	MSS4, MSS6 uint16
	// Window is what a client may send before its server has answered, in bytes; it must not be more than the first window of any server's
	// socket. 0 means 29200: 20 segments.
	Window uint16
	// ECN negotiates it with clients that ask for it. Servers' hosts must not have net.ipv4.tcp_ecn = 0 then.
	ECN bool
	// PassStrays leaves packets of no known connection to the host's stack, which answers with RST. Otherwise they are dropped, so that who
	// guesses cookies hears nothing.
	PassStrays bool

	// Patience is how long a request may be incomplete before Stack gets it: longer than requests in several segments take, and shorter than
	// clients take to send again what nobody acknowledges. 0 means 50 ms.
	Patience time.Duration
	// Keep is how long what was sent to a node is kept, in case that it cannot take the connection (Return). 0 means one second.
	Keep time.Duration
	// MaxFlows bounds the flows that are undecided or kept: beyond, those kept are forgotten early. 0 means 32,768.
	MaxFlows int
	// RequestBytes bounds what Decide is shown; a request of this size for which it still wants more goes to Stack. 0 means 16 KiB.
	RequestBytes int
	// Logger receives what no method can return. Nil: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults(mtu int) Config {
	if c.MSS4 == 0 {
		c.MSS4 = uint16(min(max(mtu-40, 536), 65495))
	}
	if c.MSS6 == 0 {
		c.MSS6 = uint16(min(max(mtu-60, 1220), 65475))
	}
	if c.Window == 0 {
		c.Window = 29200
	}
	if c.Patience == 0 {
		c.Patience = 50 * time.Millisecond
	}
	if c.Keep == 0 {
		c.Keep = time.Second
	}
	if c.MaxFlows == 0 {
		c.MaxFlows = 1 << 15
	}
	if c.RequestBytes == 0 {
		c.RequestBytes = 16 << 10
	}
	if c.Parameters.WindowScale == 0 {
		c.Parameters.WindowScale = cookie.DefaultWindowScale
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.Interface == "":
		return errors.New("no interface: name the one the clients' packets arrive on")
	case c.Table == nil:
		return errors.New("no flow table: packets of decided flows would find no way")
	case c.Decide == nil:
		return errors.New("no Decide: nobody would say who serves")
	case c.Patience < 0 || c.Keep < 0 || c.MaxFlows < 0 || c.RequestBytes < 0:
		return errors.New("negative: Patience, Keep, MaxFlows and RequestBytes cannot be")
	case c.Window != 0 && c.Window < 1460:
		return fmt.Errorf("window %d: at least a segment", c.Window)
	}
	return nil
}

func (c Config) announcement() cookie.Announcement {
	return cookie.Announcement{MSS4: c.MSS4, MSS6: c.MSS6, Window: c.Window, ECN: c.ECN, PassStrays: c.PassStrays}
}
