// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"log/slog"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/gate/nft"
	"github.com/rehome-net/rehome/tcprepair"
)

// nftForwarder is gate and forwarder in one, by nftables: what ends a hold leads the flow's packets to the backend that it was granted to, also
// when that is the hold's deadline, since this process is dead.
type nftForwarder struct{ *nft.Gate }

func openNFT(cfg *Config, log *slog.Logger) (nftForwarder, error) {
	g, err := nft.Open(nft.Config{
		Interfaces: cfg.Interfaces, Keep: cfg.PinPath() != "", IdleTimeout: cfg.Forward.IdleTimeout, Logger: log,
	})
	return nftForwarder{g}, err
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
func (f nftForwarder) Route(flow tcprepair.Flow) (gate.RouteInfo, error) {
	r, err := f.Gate.Route(flow)
	r.Idle = silent
	return r, err
}
