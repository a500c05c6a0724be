// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"log/slog"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/tcprepair"
)

// nftForwarder is gate and forwarder in one, by nftables: the write that makes a backend the owner of a flow ends its hold. Its table knows no owner
// that has not the connection yet, so grants are this process's: a dispatcher that is killed in the midst of a handoff takes the connection with it.
type nftForwarder struct {
	*nft.Gate

	mu      sync.Mutex
	granted map[tcprepair.Flow]gate.RouteInfo
}

func openNFT(cfg *Config, log *slog.Logger) (*nftForwarder, error) {
	f, err := nft.Open(nft.Config{
		Interfaces: cfg.Interfaces, Keep: cfg.PinPath() != "", IdleTimeout: cfg.Forward.IdleTimeout, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return &nftForwarder{Gate: f, granted: make(map[tcprepair.Flow]gate.RouteInfo)}, nil
}

// needsOf is what a configuration asks of its forwarder.
func needsOf(c *Config) nft.Needs {
	n := nft.Needs{Admission: c.Admission.Policy != "" && c.Admission.RetryAfter == 0}
	for _, s := range c.Services {
		n.UDP = n.UDP || s.Mode == ModeUDP
		n.Announced = n.Announced || s.Mode.signals()
		n.Nodes = n.Nodes || s.Socketless
	}
	return n
}

// silent stands for the idle time that nftables do not tell. A host that reports an end has looked whether the ports are used again there.
const silent = time.Hour

// Route implements Path.
func (f *nftForwarder) Route(flow tcprepair.Flow) (gate.RouteInfo, error) {
	r, err := f.Gate.Route(flow)
	r.Idle = silent
	f.mu.Lock()
	defer f.mu.Unlock()
	if g, ok := f.granted[flow]; ok && err == nil && r.Epoch+1 == g.Epoch {
		return g, nil
	}
	return r, err
}

// Grant implements Path.
func (f *nftForwarder) Grant(flow tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	r, err := f.Route(flow)
	if err != nil {
		return r, err
	}
	if r.Epoch != from {
		return r, gate.ErrEpoch
	}
	r.Epoch, r.Node = from+1, owner
	f.mu.Lock()
	defer f.mu.Unlock()
	f.granted[flow] = r
	return r, nil
}

// Settle implements Path.
func (f *nftForwarder) Settle(flow tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	f.mu.Lock()
	g, ok := f.granted[flow]
	if ok = ok && g.Epoch == epoch && g.Node == owner; ok {
		delete(f.granted, flow)
	}
	f.mu.Unlock()
	if !ok {
		return g, gate.ErrEpoch
	}
	return f.Gate.Commit(flow, epoch-1, owner)
}

// Commit implements Path: that of a granted flow takes it back.
func (f *nftForwarder) Commit(flow tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	f.mu.Lock()
	g, ok := f.granted[flow]
	if ok = ok && g.Epoch == from && owner == 0; ok {
		delete(f.granted, flow)
	}
	f.mu.Unlock()
	if ok {
		return f.Gate.Route(flow) // it has never been another's
	}
	return f.Gate.Commit(flow, from, owner)
}

// Forget implements Path.
func (f *nftForwarder) Forget(flows ...tcprepair.Flow) error {
	f.mu.Lock()
	for _, flow := range flows {
		delete(f.granted, flow)
	}
	f.mu.Unlock()
	return f.Gate.Forget(flows...)
}
