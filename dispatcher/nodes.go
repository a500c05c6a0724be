// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"fmt"
	"maps"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/gate"
)

// numbered gives every peer a number in the flow table, and adds the peers to the hosts that numbers have meant. A number must go on
// meaning the same host for as long as the table lives: otherwise the packets of its connections would go to another. So a host
// whose number the configuration does not say has the one that it had; a new one, its place in the list if that is free, else the
// least free number.
func numbered(known map[gate.Node]string, peers []PeerConfig) ([]PeerConfig, map[gate.Node]string, error) {
	all := maps.Clone(known)
	if all == nil {
		all = make(map[gate.Node]string, len(peers))
	}
	ids := make(map[string]gate.Node, len(known)+len(peers))
	for n, name := range known {
		ids[name] = n
	}
	said := make([]PeerConfig, len(peers))
	for i, p := range peers {
		n := gate.Node(p.ID)
		if p.Unnumbered() {
			n = ids[p.Name]
		}
		said[i] = p
		said[i].ID, said[i].Place = uint16(n), 0
		if n == 0 {
			continue // when all others are known
		}
		if name, ok := all[n]; ok && name != p.Name {
			return nil, nil, fmt.Errorf("peers: id %d of %s is %s's in the flow table: give every peer the id that it has, and new ones others, or none", n, p.Name, name)
		}
		if was, ok := ids[p.Name]; ok && was != n {
			return nil, nil, fmt.Errorf("peers: %s has the id %d in the flow table, not %d: write id: %d", p.Name, was, n, was)
		}
		all[n], ids[p.Name] = p.Name, n
	}
	least := gate.Node(1)
	for i, p := range peers {
		if said[i].ID != 0 {
			continue
		}
		n := gate.Node(p.Place)
		if _, taken := all[n]; n == 0 || taken {
			for all[least] != "" {
				least++
			}
			n = least
		}
		if n >= gate.MaxNodes {
			return nil, nil, fmt.Errorf("peers: no id is left for %s: restart the dispatcher to give those of hosts that are no more to others", p.Name)
		}
		all[n], said[i].ID = p.Name, uint16(n)
	}
	return said, all, nil
}

// unused drops the hosts that are no peers any more and whose numbers no flow has: their numbers may be given to others.
func unused(known map[gate.Node]string, peers []PeerConfig, flows func(gate.Node) bool) {
	names := make(map[string]bool, len(peers))
	for _, p := range peers {
		names[p.Name] = true
	}
	maps.DeleteFunc(known, func(n gate.Node, name string) bool { return !names[name] && !flows(n) })
}

// nodeNames keeps which host a number of the flow table means, for as long as the table lives: a forward.Names.
type nodeNames interface {
	Load() (map[gate.Node]string, error)
	Save(names map[gate.Node]string) error
}

// remembered returns what a dispatcher before this one has left.
func (d *Dispatcher) remembered() (map[gate.Node]string, error) {
	if d.names == nil {
		return nil, nil
	}
	known, err := d.names.Load()
	if err != nil {
		return nil, err
	}
	path, ok := d.path.(scanner)
	if !ok || d.cfg.Forward.Mode == ForwardNFT { // which does not tell
		return known, nil
	}
	used, err := nodesIn(path)
	if err != nil {
		return nil, err
	}
	unused(known, d.cfg.Peers, func(n gate.Node) bool { return used[n] })
	return known, nil
}

// nodesIn returns the numbers that flows of the table have.
func nodesIn(path scanner) (map[gate.Node]bool, error) {
	used := make(map[gate.Node]bool)
	known := make([]forward.Known, 1024)
	for at := forward.Cursor(0); ; {
		n, next, err := path.Scan(at, known)
		if err != nil {
			return nil, err
		}
		for _, k := range known[:n] {
			used[k.Node] = true
		}
		if at = next; at == 0 {
			return used, nil
		}
	}
}

// remember keeps the numbers of a plan before a connection is given to its hosts.
func (d *Dispatcher) remember(p *plan) error {
	if d.names == nil {
		return nil
	}
	return d.names.Save(p.nodes)
}
