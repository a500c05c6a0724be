// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"
)

// Limits of the tables, fixed in the BPF object. They are gate.MaxNodes and gate.MaxServiceNodes.
const (
	MaxNodes        = 4096 // nodes are 0 to MaxNodes-1
	MaxServiceNodes = 64   // nodes of one service
)

// Mode is where in the kernel packets are looked at.
type Mode uint8

// Modes.
const (
	// TCX is the kernel's traffic control hook. It works on every interface, at once, and keeps segmentation offloads.
	TCX Mode = iota
	// XDP is the driver's own hook, for physical interfaces whose driver has it. Open falls back to TCX, with a warning,
	// if a probe shows that frames get lost.
	XDP
)

func (m Mode) String() string {
	switch m {
	case TCX:
		return "tcx"
	case XDP:
		return "xdp"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Config says where a forwarder stands and how much it remembers. Interfaces is required; every other zero value works.
type Config struct {
	// Interfaces are the names of the Ethernet interfaces the clients' packets arrive on. In mode XDP, also those that
	// nodes are reached by.
	Interfaces []string
	// Mode is what is wished for; Forwarder.Mode tells what came of it.
	Mode Mode
	// Peers are IPv4 addresses of neighbours that answer ARP, for the probe before XDP is trusted: one for each interface.
	// Empty: the kernel's neighbours and gateways on the interface are asked. Without any, XDP is not used.
	Peers []netip.Addr
	// PinPath is a directory on a BPF filesystem, for this forwarder alone. Tables and programs are pinned there and
	// outlive the process; the next Open with the same path goes on with them. Empty: they go with the process.
	PinPath string
	// MaxFlows is how many flows the table is made for, for IPv4 and for IPv6 each. 0 means 1,048,576, which takes 127 MiB
	// of kernel memory. A pinned table keeps its size.
	MaxFlows uint32
	// IdleTimeout is how long the owner of a TCP flow is remembered that no packet is seen of. 0 means 4 hours, twice the
	// usual keepalive time.
	IdleTimeout time.Duration
	// ClosingTimeout is the same for a TCP flow whose client has sent FIN or RST. 0 means 2 minutes. A client that half-closes
	// and then waits longer for the first byte of its answer, in silence, needs more.
	ClosingTimeout time.Duration
	// DatagramTimeout is the same for a UDP flow. 0 means 2 minutes.
	DatagramTimeout time.Duration
	// MaxAnnounced is how many announcements there may be at a time. 0 means 65,536. A pinned table keeps its size.
	MaxAnnounced uint32
	// Divert makes the tap by which user space sees packets first: see Forwarder.Divert and Handling.
	Divert bool
	// DivertQueue is how many frames wait in the tap while nobody gets to read them. 0 means 1024; at most 2047.
	DivertQueue int
	// DivertTimeout is for how long the kernel waits for a sign of life of Divert, before it lets inspected flows go straight to their
	// servers and drops what is undecided. 0 means 1 second.
	DivertTimeout time.Duration
	// NoShortcut has frames leave by the interface itself also where they could go on at the other end of its veth pair at once: see doc.go.
	NoShortcut bool
	// ShortcutChanged, if it is set, is told of each change by which frames begin or cease to leave an interface so. It is called from Run.
	ShortcutChanged func(ifindex int, short bool)
	// Logger receives what no method can return. nil: nothing is logged.
	Logger *slog.Logger
}

// Way says how frames leave by one of Config.Interfaces.
type Way struct {
	Interface string
	// Shortcut: they go on at the other end of the interface's veth pair at once. Why says why not; it is nil then.
	Shortcut bool
	Why      error
}

// Bounds of what Config may ask for.
const (
	maxAnnounced = 1 << 22
	// maxDivertQueue is less than what a flow's word counts to (META_COUNT in bpf/table.h).
	maxDivertQueue   = 2047
	minDivertTimeout = 20 * time.Millisecond
)

// maxTimeout is far below the 26 days at which the table's 32-bit clock would mistake the past for the future.
const maxTimeout = 20 * 24 * time.Hour

func (c Config) withDefaults() Config {
	if c.MaxFlows == 0 {
		c.MaxFlows = 1 << 20
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = 4 * time.Hour
	}
	if c.ClosingTimeout == 0 {
		c.ClosingTimeout = 2 * time.Minute
	}
	if c.DatagramTimeout == 0 {
		c.DatagramTimeout = 2 * time.Minute
	}
	if c.MaxAnnounced == 0 {
		c.MaxAnnounced = 1 << 16
	}
	if c.DivertQueue == 0 {
		c.DivertQueue = 1024
	}
	if c.DivertTimeout == 0 {
		c.DivertTimeout = time.Second
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
	if c.Mode > XDP {
		return fmt.Errorf("%v: want tcx or xdp", c.Mode)
	}
	for _, a := range c.Peers {
		if !a.Unmap().Is4() {
			return fmt.Errorf("peer %v: want an IPv4 address, which is asked for by ARP", a)
		}
	}
	if c.MaxFlows > maxFlows {
		return fmt.Errorf("MaxFlows %d: at most %d", c.MaxFlows, maxFlows)
	}
	if c.MaxAnnounced > maxAnnounced {
		return fmt.Errorf("MaxAnnounced %d: at most %d", c.MaxAnnounced, maxAnnounced)
	}
	if c.DivertQueue < 0 || c.DivertQueue > maxDivertQueue {
		return fmt.Errorf("DivertQueue %d: want at most %d", c.DivertQueue, maxDivertQueue)
	}
	if c.DivertTimeout < 0 || c.DivertTimeout > 0 && c.DivertTimeout < minDivertTimeout {
		return fmt.Errorf("DivertTimeout %v: want at least %v", c.DivertTimeout, minDivertTimeout)
	}
	for name, d := range map[string]time.Duration{
		"IdleTimeout": c.IdleTimeout, "ClosingTimeout": c.ClosingTimeout, "DatagramTimeout": c.DatagramTimeout,
	} {
		if d < 0 || d > maxTimeout {
			return fmt.Errorf("%s %v: want at most %v", name, d, maxTimeout)
		}
	}
	return nil
}

// Stats counts what the forwarder did since its tables were made.
type Stats struct {
	Forwarded uint64 // packets sent to another node
	Assigned  uint64 // new flows given to a node of their service
	Errors    uint64 // of the packets forwarded: ICMP errors
	Fragments uint64 // of the packets forwarded: fragments
	NoNode    uint64 // dropped: the owner is not in the node table
	Loop      uint64 // dropped: would have gone back where it came from
	Full      uint64 // first packets of flows dropped: no room in the flow table

	Diverted uint64 // packets sent to user space
	Unread   uint64 // dropped: undecided, and nobody reads the tap
	Crowded  uint64 // dropped: too many of their service's frames are on their way through user space
	Split    uint64 // first fragments that were for user space: datagrams are put together there, segments are not (doc.go)
	// Incomplete counts the datagrams of which user space has not got all fragments, since this process began.
	Incomplete uint64
	Secondary  uint64 // announced flows that have begun
	Untold     uint64 // of these: without an Event, because nobody read them in time; Scan finds the flow
	Refused    uint64 // dropped by admission: first packets
	Degraded   uint64 // dropped by admission: packets of established flows

	Flows    uint64  // alive at the last sweep
	Fresh    uint64  // of those: in their handshake
	Dying    uint64  // over, but not yet free, at the last sweep
	Capacity uint64  // slots for flows, of both IP versions
	Pressure float64 // share of the slots in use at the last sweep, of the fuller IP version; refusals begin at 0.84 or more
}
