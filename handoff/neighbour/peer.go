// SPDX-License-Identifier: Apache-2.0

package neighbour

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/rehome-net/rehome/handoff/gate"
)

// Peer is another host, as a daemon's configuration names it.
type Peer struct {
	Name string `yaml:"name"`
	// Address is its agent's, host:port. The host part is also where its packets are sent at layer 2.
	Address string `yaml:"address"`
	// MAC is its link-layer address; learned from the neighbour table when empty.
	MAC string `yaml:"mac"`
	// ID numbers the host in the pinned table (1-4095). A number must go on meaning the same host as long as the table lives. 0: its
	// place in the list for an agent (append new hosts at the end, or give IDs); a dispatcher remembers the number that it had.
	ID uint16 `yaml:"id"`
	// Place is the host's in the list, if the configuration says no ID; ID is the same then, until a dispatcher knows better.
	Place uint16 `yaml:"-"`
}

// Validate says what is wrong with a peer whose ID has been given.
func (p Peer) Validate() error {
	if p.Name == "" {
		return errors.New("name: missing")
	}
	addr, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return fmt.Errorf("address: %w: want ip:port of its agent", err)
	}
	if addr.Addr().IsUnspecified() || addr.Port() == 0 {
		return fmt.Errorf("address: %v is not a host's address", addr)
	}
	if p.MAC != "" {
		if mac, err := net.ParseMAC(p.MAC); err != nil || len(mac) != 6 {
			return fmt.Errorf("mac: %q: want an Ethernet address, 02:00:5e:10:00:01 for instance", p.MAC)
		}
	}
	if p.ID == 0 || p.ID >= gate.MaxNodes {
		return fmt.Errorf("id: %d: want 1 to %d", p.ID, gate.MaxNodes-1)
	}
	return nil
}

// Unnumbered says that nobody has said which number the peer has.
func (p Peer) Unnumbered() bool { return p.ID == 0 || p.ID == p.Place }

// IP returns the peer's address without the port, IPv4 as such; not valid if there is something wrong with it.
func (p Peer) IP() netip.Addr {
	at, err := netip.ParseAddrPort(p.Address)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// Host returns the peer as a packet path knows it.
func (p Peer) Host() Host {
	return Host{Name: p.Name, Addr: p.IP(), MAC: p.MAC, Node: gate.Node(p.ID)}
}
