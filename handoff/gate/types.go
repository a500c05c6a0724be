// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Node is an index in the gate's node table: the hosts packets can be forwarded to. 0 is this host itself.
type Node uint16

// Limits of the tables, fixed in the BPF object.
const (
	MaxNodes        = 4096 // nodes are 0 to MaxNodes-1
	MaxServiceNodes = 64   // nodes of one service
)

// Direction says which packets of a flow a hold concerns. Bits may be combined.
type Direction uint8

// Directions.
const (
	Ingress Direction = 1 << iota // the client's packets are kept
	Egress                        // the host's own packets are suppressed, so that a frozen socket acknowledges nothing
)

// Config says what a gate guards and how much it keeps. Interfaces is required; every other zero value works.
type Config struct {
	// Interfaces are the names of the Ethernet interfaces the service traffic arrives on and leaves by.
	Interfaces []string
	// PinPath is a directory on a BPF filesystem. Tables and programs are pinned there and outlive the process; the next
	// Open with the same path goes on with them. Empty: they go with the process.
	PinPath string
	// MaxFlows bounds the flow table, separately for IPv4 and IPv6. 0 means 262,144. A pinned table keeps its size.
	MaxFlows uint32
	// HoldPackets and HoldBytes bound what is kept of one flow; what comes beyond is dropped and counted.
	// 0 means 4,096 packets and 8 MiB.
	HoldPackets, HoldBytes int
	// HoldTotal bounds what is kept of all flows together, in bytes: what comes beyond is dropped and counted, and its sender sends it again. 0 means
	// 256 MiB.
	HoldTotal int
	// IdleTimeout is how long an entry remembers the owner of a flow it sees no packet of. 0 means 4 hours, twice the
	// usual keepalive time. Flows whose handshake never ends go after two minutes.
	IdleTimeout time.Duration
	// Logger receives what no method can return. nil: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.MaxFlows == 0 {
		c.MaxFlows = 1 << 18
	}
	if c.HoldPackets == 0 {
		c.HoldPackets = 4096
	}
	if c.HoldBytes == 0 {
		c.HoldBytes = 8 << 20
	}
	if c.HoldTotal == 0 {
		c.HoldTotal = 256 << 20
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
		return errors.New("no interface: name the one the service's packets arrive on")
	}
	seen := make(map[string]bool, len(c.Interfaces))
	for _, name := range c.Interfaces {
		if name == "" || seen[name] {
			return fmt.Errorf("interface %q: empty or named twice", name)
		}
		seen[name] = true
	}
	if c.HoldPackets < 0 || c.HoldBytes < 0 || c.HoldTotal < 0 || c.IdleTimeout < 0 {
		return errors.New("HoldPackets, HoldBytes, HoldTotal and IdleTimeout cannot be negative")
	}
	return nil
}

// Held counts what happened to a flow during one hold.
type Held struct {
	Packets    int // kept (after segmentation)
	Bytes      int // of those, with their Ethernet headers
	Dropped    int // lost: beyond Config.HoldPackets, HoldBytes or HoldTotal, or because nobody read the tap in time
	Suppressed int // own packets stopped at egress
}

// RouteInfo is what a gate knows of one flow.
type RouteInfo struct {
	Node  Node          // who serves it; 0: this host
	Epoch uint32        // how often the owner was decided; 0: this gate is not the flow's entry
	Hold  Direction     // directions held now
	Left  time.Duration // until the hold ends by itself
	Idle  time.Duration // since its last packet, to some milliseconds

	Forwarded uint64 // packets sent on to Node
}

// Entry reports whether this gate is the flow's entry, which decides on its owner.
func (r RouteInfo) Entry() bool { return r.Epoch != 0 }

// Stats counts what the gate did since its tables were made.
type Stats struct {
	Held       uint64 // packets given to a tap
	Suppressed uint64 // own packets stopped at egress
	Forwarded  uint64 // packets sent to another node
	Assigned   uint64 // new flows given to a node of their service
	NoTap      uint64 // dropped: held with no process to keep it
	NoNode     uint64 // dropped: the owner is not in the node table
	Loop       uint64 // dropped: would have gone back where it came from
	Full       uint64 // SYNs dropped: the flow table is full

	Overflow uint64 // dropped by this process: beyond a flow's bound, or Config.HoldTotal
	Crowded  uint64 // of those: beyond Config.HoldTotal
	Kept     uint64 // bytes of held packets that this process has now
	Lapsed   uint64 // holds of this process that ended by their deadline
	Flows    uint64 // entries alive at the last sweep
	Holds    uint64 // holds alive at the last sweep
}
