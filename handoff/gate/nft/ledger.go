// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// ledger knows who owns which flow. The kernel has the same for the flows of other nodes.
type ledger struct {
	services map[netip.AddrPort]bool
	flows    map[tcprepair.Flow]gate.RouteInfo
}

func newLedger() ledger {
	return ledger{services: make(map[netip.AddrPort]bool), flows: make(map[tcprepair.Flow]gate.RouteInfo)}
}

// find returns what holds for a flow. One of a service that nothing is recorded of is this host's, as its SYN came here: epoch 1.
func (l *ledger) find(f tcprepair.Flow) (r gate.RouteInfo, recorded bool, err error) {
	if r, ok := l.flows[f]; ok {
		return r, true, nil
	}
	if l.services[f.Local] {
		return gate.RouteInfo{Epoch: 1}, false, nil
	}
	return gate.RouteInfo{}, false, gate.ErrNoFlow
}

// commit returns what a commit makes of a flow, and changes nothing. With gate.ErrEpoch, it is what holds.
func (l *ledger) commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	r, _, err := l.find(f)
	if err != nil {
		return r, err
	}
	if r.Epoch != from {
		return r, gate.ErrEpoch
	}
	return gate.RouteInfo{Node: owner, Epoch: from + 1}, nil
}

// adopt is the same for a flow without an owner.
func (l *ledger) adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	if r, ok := l.flows[f]; ok {
		return r, gate.ErrExists
	}
	return gate.RouteInfo{Node: owner, Epoch: epoch}, nil
}

// begun is told of connections whose SYN came since: what was recorded of their ports is over. It returns those that the kernel has in its
// map, to be removed there.
func (l *ledger) begun(fresh []tcprepair.Flow) (stale []tcprepair.Flow) {
	for _, f := range fresh {
		if r, ok := l.flows[f]; ok {
			delete(l.flows, f)
			if r.Node != 0 {
				stale = append(stale, f)
			}
		}
	}
	return stale
}

// unchanged returns the flows of other nodes that are still what they were.
func (l *ledger) unchanged(before map[tcprepair.Flow]gate.RouteInfo) (same []tcprepair.Flow) {
	for f, r := range before {
		if r.Node != 0 && l.flows[f] == r {
			same = append(same, f)
		}
	}
	return same
}

// inBoth returns the flows that are in two lists, and are the same there.
func inBoth(a, b map[tcprepair.Flow]gate.RouteInfo) map[tcprepair.Flow]gate.RouteInfo {
	common := make(map[tcprepair.Flow]gate.RouteInfo)
	for f, r := range a {
		if other, ok := b[f]; ok && other == r {
			common[f] = r
		}
	}
	return common
}

// elsewhere counts the flows of other nodes.
func (l *ledger) elsewhere() (n int) {
	for _, r := range l.flows {
		if r.Node != 0 {
			n++
		}
	}
	return n
}
