// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// sessionForwarder is a forwarder with the protocol as a parameter.
type sessionForwarder struct{ *forward.Forwarder }

var _ sessionPath = sessionForwarder{}

func (f sessionForwarder) of(protocol uint8) *forward.Flows {
	if protocol == unix.IPPROTO_UDP {
		return f.UDP()
	}
	return f.Flows
}

// Assign implements sessionPath.
func (f sessionForwarder) Assign(protocol uint8, flow tcprepair.Flow, owner gate.Node, inspect bool) (gate.RouteInfo, error) {
	return f.of(protocol).Assign(flow, owner, inspect)
}

// Locate implements sessionPath.
func (f sessionForwarder) Locate(protocol uint8, flow tcprepair.Flow) (gate.RouteInfo, error) {
	return f.of(protocol).Route(flow)
}

// Send implements sessionPath.
func (f sessionForwarder) Send(p packet, to gate.Node) error { return f.Forwarder.Send(p.Diverted, to) }

// Divert implements sessionPath.
func (f sessionForwarder) Divert(ctx context.Context, decide func(packet)) error {
	return f.Forwarder.Divert(ctx, func(d forward.Diverted) {
		p := packet{Diverted: d}
		p.sequence, p.flags = d.Sequence, d.Flags
		decide(p)
	})
}

// Drop implements sessionPath.
func (f sessionForwarder) Drop(protocol uint8, flow tcprepair.Flow) error {
	return f.of(protocol).Forget(flow)
}

// Handle implements sessionPath.
func (f sessionForwarder) Handle(protocol uint8, at netip.AddrPort, h forward.Handling) error {
	return f.of(protocol).SetHandling(at, h)
}

// SetAdmission is Flows.SetAdmission for the protocol.
func (f sessionForwarder) SetAdmission(protocol uint8, at netip.AddrPort, a forward.Admission) error {
	return f.of(protocol).SetAdmission(at, a)
}

// Unhandle implements sessionPath.
func (f sessionForwarder) Unhandle(protocol uint8, at netip.AddrPort) error {
	return f.of(protocol).RemoveService(at)
}

// Switch implements sessionPath.
func (f sessionForwarder) Switch(protocol uint8, flow tcprepair.Flow, from uint32, to gate.Node) (gate.RouteInfo, error) {
	return f.of(protocol).Commit(flow, from, to)
}

// Detour implements sessionPath.
func (f sessionForwarder) Detour(protocol uint8, flow tcprepair.Flow, on bool) error {
	return f.of(protocol).Inspect(flow, on)
}
