// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/synproxy"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// kernelPath is the packet path in the kernel: the forwarder, which knows the owners of flows, and behind it the gate, which holds the
// packets of those that are being handed off.
type kernelPath struct {
	flowTable
	holds holder
	// Of the two ways to do it, one is there.
	bpf  *forward.Forwarder
	gate *gate.Gate
	nft  nftForwarder
	// proxy is nil unless a service is socketless. It is set before Run.
	proxy *synproxy.Proxy
	log   *slog.Logger
}

var _ Path = (*kernelPath)(nil)

// holder holds the packets of single connections during their handoff (package gate, package nft).
type holder interface {
	Hold(f tcprepair.Flow, d gate.Direction, ttl time.Duration) error
	Unhold(f tcprepair.Flow) error
	Release(f tcprepair.Flow) (gate.Held, error)
	Divert(f tcprepair.Flow, to gate.Node, ttl time.Duration, before ...[]byte) error
}

// flowTable is a Path that nobody need hold packets behind.
type flowTable interface{ Path }

// Stats returns the forwarder's counters; nftables count less.
func (p *kernelPath) Stats() forward.Stats {
	if p.bpf == nil {
		s := p.nft.Stats()
		return forward.Stats{Flows: s.Flows, Forwarded: s.Forwarded}
	}
	return p.bpf.Stats()
}

// Ways tells how packets leave by the interfaces; of nftables there is nothing to tell.
func (p *kernelPath) Ways() []forward.Way {
	if p.bpf == nil {
		return nil
	}
	return p.bpf.Ways()
}

// shorten lets the proxy's answers take the way that forwarded packets take.
func (p *kernelPath) shorten(ifindex int, short bool) {
	if p.proxy == nil {
		return
	}
	if err := p.proxy.SetShortcut(ifindex, short); err != nil {
		p.log.Error("shortcut of what answers SYNs", "error", err)
	}
}

// Scan shows the flows of the table; nftables do not tell.
func (p *kernelPath) Scan(at forward.Cursor, into []forward.Known) (n int, next forward.Cursor, err error) {
	if p.bpf == nil {
		return 0, 0, nil
	}
	return p.bpf.Scan(at, into)
}

// openPath opens both. The gate comes first: who comes later stands in front. With nftables both are one, and nothing of it is BPF.
func openPath(cfg *Config, log *slog.Logger) (*kernelPath, error) {
	within := func(name string) string {
		if pin := cfg.PinPath(); pin != "" {
			return filepath.Join(pin, name)
		}
		return ""
	}
	if cfg.Forward.Mode == ForwardNFT {
		f, err := openNFT(cfg, log)
		if err != nil {
			return nil, fmt.Errorf("forwarder: %w", err)
		}
		return &kernelPath{flowTable: f, holds: f, nft: f}, nil
	}
	g, err := gate.Open(gate.Config{Interfaces: cfg.Interfaces, PinPath: within("gate"), HoldTotal: cfg.Forward.HoldTotal, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("gate: %w", err)
	}
	mode := forward.TCX
	if cfg.Forward.Mode == ForwardXDP {
		mode = forward.XDP
	}
	p := &kernelPath{holds: g, gate: g, log: log}
	f, err := forward.Open(forward.Config{
		Interfaces: cfg.Interfaces, Mode: mode, PinPath: within("forward"), MaxFlows: cfg.Forward.MaxFlows,
		IdleTimeout: cfg.Forward.IdleTimeout, Divert: cfg.hasSessions(), Logger: log,
		NoShortcut: cfg.Forward.Shortcut == ShortcutOff, ShortcutChanged: p.shorten,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("forwarder: %w", err), g.Close())
	}
	p.flowTable, p.bpf = f, f
	return p, nil
}

// Reused implements reuser: nftables do not tell of a SYN.
func (p *kernelPath) Reused(f tcprepair.Flow) bool {
	if p.bpf != nil {
		return false
	}
	return p.Forget(f) == nil
}

// SetNode tells all how a host is reached: the gate sends what it has held there itself, the proxy first packets.
func (p *kernelPath) SetNode(n gate.Node, ifindex int, dst, src net.HardwareAddr) error {
	err := p.flowTable.SetNode(n, ifindex, dst, src)
	if p.gate != nil {
		err = errors.Join(err, p.gate.SetNode(n, ifindex, dst, src))
	}
	if p.proxy != nil {
		err = errors.Join(err, p.proxy.SetNode(n, ifindex, dst, src))
	}
	return err
}

// Run runs both until ctx ends.
func (p *kernelPath) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	if p.gate != nil {
		group.Go(func() error { return p.gate.Run(ctx) })
	}
	group.Go(func() error { return p.flowTable.Run(ctx) })
	return group.Wait()
}

// Close closes both; with a pin directory the kernel goes on forwarding.
func (p *kernelPath) Close() error {
	err := p.flowTable.Close()
	if p.gate != nil {
		err = errors.Join(err, p.gate.Close())
	}
	return err
}
