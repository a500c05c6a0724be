// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// MaxNodes bounds the nodes' numbers, as in package gate.
const MaxNodes = gate.MaxNodes

// defaultTable is the name of the table that Config leaves open.
const defaultTable = "rehome"

// maxFresh is how many connections are remembered at a time that have begun and are not handed over.
const maxFresh = 1 << 16

// maxSeen is how many flows of other nodes are remembered with the time of their last packet, for each version of IP. What is beyond it is
// forwarded, and forgotten like what is idle.
const maxSeen = 1 << 20

// Errors that callers can tell apart. ErrNoFlow, ErrEpoch and ErrExists are the gate's.
var (
	ErrClosed      = gate.ErrClosed
	ErrPermission  = errors.New("not permitted: needs CAP_NET_ADMIN and CAP_NET_RAW")
	ErrUnsupported = errors.New("nftables cannot do this: it needs BPF")
)

// Config says where the gate stands. Interfaces is required.
type Config struct {
	// Interfaces are the names of the Ethernet interfaces that clients' packets arrive on.
	Interfaces []string
	// Table is the name of the table in the netdev family, for this gate alone. Empty means "rehome".
	Table string
	// Keep leaves the table in place when the gate is closed: connections that were handed over go on, and the next Open with
	// the same name takes them over.
	Keep bool
	// Server is set on a host that serves and is no entry: nothing is recorded there of connections that begin.
	Server bool
	// IdleTimeout is how long an entry remembers the owner of a flow it sees no packet of. 0 means 4 hours, as in package gate.
	IdleTimeout time.Duration
	// Logger receives what no method can return. nil: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Table == "" {
		c.Table = defaultTable
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 4 * time.Hour
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) validate() error {
	if len(c.Interfaces) == 0 {
		return errors.New("no interface: name the one the clients' packets arrive on")
	}
	seen := make(map[string]bool, len(c.Interfaces))
	for _, name := range c.Interfaces {
		if name == "" || seen[name] {
			return fmt.Errorf("interface %q: empty or named twice", name)
		}
		seen[name] = true
	}
	if c.IdleTimeout < 0 {
		return errors.New("IdleTimeout cannot be negative")
	}
	return nil
}

// Needs is what a configuration asks of its gate.
type Needs struct {
	UDP       bool // a service of datagrams
	Announced bool // sessions of several flows
	Inspect   bool // signalling by way of user space
	Admission bool // refusals in the kernel
	Nodes     bool // services whose connections the dispatcher does not accept itself
}

// Check returns an ErrUnsupported that names all that nftables cannot do.
func Check(n Needs) error {
	var missing []string
	for _, c := range []struct {
		asked bool
		what  string
	}{
		{n.UDP, "UDP services"},
		{n.Announced, "announced flows"},
		{n.Inspect, "inspection of signalling"},
		{n.Admission, "admission in the kernel"},
		{n.Nodes, "services whose connections go to servers unseen"},
	} {
		if c.asked {
			missing = append(missing, c.what)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.Join(missing, ", "), ErrUnsupported)
}

// OpError says which operation failed on which flow.
type OpError struct {
	Op   string
	Flow tcprepair.Flow // zero for operations on the gate as a whole
	Err  error
}

func (e *OpError) Error() string {
	if e.Flow.IsValid() {
		return "nft: " + e.Op + " " + e.Flow.String() + ": " + e.Err.Error()
	}
	return "nft: " + e.Op + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }
