// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/entry"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/handoff/neighbour"
	"github.com/rehome-net/rehome/tcprepair"
)

// GateMode is how packets are held and forwarded.
type GateMode string

// Gate modes.
const (
	GateAuto GateMode = "auto" // BPF, or an error that says what is missing
	GateBPF  GateMode = "bpf"
	GateNFT  GateMode = "nft" // nftables, where the kernel refuses BPF (package nft): packets are dropped for the time of a move
)

// nftTable is the agent's table, beside a dispatcher's on the same host.
const nftTable = "rehome-agent"

// packetGate is a gate.Gate or an nft.Gate.
type packetGate interface {
	entry.Flows
	neighbour.Nodes
	Hold(f tcprepair.Flow, d gate.Direction, ttl time.Duration) error
	HoldAll(d gate.Direction, ttl time.Duration, flows ...tcprepair.Flow) error
	Serve(f tcprepair.Flow, ttl time.Duration) error
	Release(f tcprepair.Flow) (gate.Held, error)
	Yield(f tcprepair.Flow) error
	Forward(f tcprepair.Flow, to gate.Node, ttl time.Duration) ([][]byte, error)
	Replay(f tcprepair.Flow, frames [][]byte) error
	Forget(flows ...tcprepair.Flow) error
	SetService(vip netip.AddrPort, nodes []gate.Node) error
	RemoveService(vip netip.AddrPort) error
	Services() ([]netip.AddrPort, error)
	Shut(vip netip.AddrPort, ttl time.Duration) error
	Open(vip netip.AddrPort) (gate.Held, error)
	Stats() gate.Stats
	Run(ctx context.Context) error
	Close() error
}

// openGate opens what the configuration chooses.
func (a *Agent) openGate() (packetGate, error) {
	c := a.cfg.Gate
	if c.Mode == GateNFT {
		g, err := nft.Open(nft.Config{
			Interfaces: a.cfg.Interfaces, Table: nftTable, Keep: a.cfg.pinPath() != "", Server: true, Logger: a.log,
		})
		if err != nil {
			return nil, fmt.Errorf("gate: %w", err)
		}
		return g, nil
	}
	g, err := gate.Open(a.cfg.gate(a.log))
	if errors.Is(err, gate.ErrPermission) || errors.Is(err, gate.ErrUnsupported) {
		return nil, fmt.Errorf("gate: %w (where the kernel refuses BPF for good: gate.mode: nft)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	return g, nil
}

// gate returns what the gate of BPF is to be.
func (c *Config) gate(log *slog.Logger) gate.Config {
	return gate.Config{
		Interfaces: c.Interfaces, PinPath: c.pinPath(), MaxFlows: c.Gate.MaxFlows,
		HoldPackets: c.Gate.HoldPackets, HoldBytes: c.Gate.HoldBytes, HoldTotal: c.Gate.HoldTotal, IdleTimeout: c.Gate.IdleTimeout, Logger: log,
	}
}

// validateGate returns what the chosen gate cannot do.
func (c *Config) validateGate() error {
	switch c.Gate.Mode {
	case GateAuto, GateBPF:
		return nil
	case GateNFT:
	default:
		return fmt.Errorf("gate.mode: %q: want %s, %s or %s", c.Gate.Mode, GateAuto, GateBPF, GateNFT)
	}
	var errs []error
	for i, s := range c.Services {
		if s.Entry == c.Host {
			errs = append(errs, fmt.Errorf("services[%d] %s: entry: this host cannot be one with gate.mode: nft, as its new connections are given to servers by BPF: "+
				"let a dispatcher with forward.mode: nft be the entry", i, s.Name))
		}
		if s.Process && slices.Contains(s.Servers, c.Host) {
			errs = append(errs, fmt.Errorf("services[%d] %s: process: a process cannot be moved with gate.mode: nft, which keeps no packets for it: it needs BPF", i, s.Name))
		}
	}
	return errors.Join(errs...)
}

// drops reports whether a hold loses what comes, which is then sent again, rather than keeping it.
func (c *Config) drops() bool { return c.Gate.Mode == GateNFT }
