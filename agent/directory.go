// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/netip"

	"github.com/rehome-net/rehome/handoff/gate"
)

// directory is what the engine and its entry know of hosts: those of the configuration, and those that have been in it since the
// agent was started. A flow that belongs to one of them goes on doing so, and a move to it comes to its end.
type directory struct {
	cfg   *Config // the engine's
	names map[gate.Node]string
	nodes map[string]gate.Node
}

func newDirectory(cfg *Config) *directory {
	d := &directory{cfg: cfg}
	d.learn(cfg.Peers)
	return d
}

// Node implements entry.Directory.
func (d *directory) Node(host string) (gate.Node, bool) {
	if host == d.cfg.Host {
		return 0, true
	}
	n, ok := d.nodes[host]
	return n, ok
}

// HostOf implements entry.Directory.
func (d *directory) HostOf(n gate.Node) string {
	if name, ok := d.names[n]; ok && n != 0 {
		return name
	}
	return d.cfg.HostOf(n)
}

// Serves implements entry.Directory.
func (d *directory) Serves(address netip.AddrPort, host string) (entry, server bool) {
	return d.cfg.Serves(address, host)
}

// check looks for peers whose number does not fit what it has meant until now. The packets of another host's flows would go there.
func (d *directory) check(peers []PeerConfig) error {
	for _, p := range peers {
		n := gate.Node(p.ID)
		if name, ok := d.names[n]; ok && name != p.Name {
			return fmt.Errorf("peers: id %d of %s is %s's in the flow table: give every peer the id that it has, and new ones others", n, p.Name, name)
		}
		if was, ok := d.nodes[p.Name]; ok && was != n {
			return fmt.Errorf("peers: %s has the id %d in the flow table, not %d: write id: %d", p.Name, was, n, was)
		}
	}
	return nil
}

// learn adds peers that check has accepted.
func (d *directory) learn(peers []PeerConfig) {
	if d.names == nil {
		d.names, d.nodes = make(map[gate.Node]string), make(map[string]gate.Node)
	}
	for _, p := range peers {
		d.names[gate.Node(p.ID)], d.nodes[p.Name] = p.Name, gate.Node(p.ID)
	}
}
