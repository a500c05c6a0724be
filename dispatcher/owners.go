// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/entry"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// owners is the flow table as agents know it. A connection that its server has accepted itself begins at epoch 1 there; in the packet path that is
// the epoch of a first packet that nobody has decided about yet, and the decision is one more. Agents hear of neither.
type owners struct{ d *Dispatcher }

var _ entry.Flows = owners{}

// ahead is by how much the path's epoch of a flow is more than its server's.
func (o owners) ahead(f tcprepair.Flow) uint32 {
	if o.d.live.Load().sessions[endpoint{unix.IPPROTO_TCP, f.Local}] != nil {
		return 1
	}
	return 0
}

// Route implements entry.Flows.
func (o owners) Route(f tcprepair.Flow) (gate.RouteInfo, error) {
	r, err := o.d.path.Route(f)
	return o.told(f, r), err
}

// Adopt implements entry.Flows.
func (o owners) Adopt(f tcprepair.Flow, epoch uint32, owner gate.Node) (gate.RouteInfo, error) {
	r, err := o.d.path.Adopt(f, epoch+o.ahead(f), owner)
	return o.told(f, r), err
}

// Commit implements entry.Flows.
func (o owners) Commit(f tcprepair.Flow, from uint32, owner gate.Node) (gate.RouteInfo, error) {
	r, err := o.d.path.Commit(f, from+o.ahead(f), owner)
	return o.told(f, r), err
}

// told is what agents are told of a flow.
func (o owners) told(f tcprepair.Flow, r gate.RouteInfo) gate.RouteInfo {
	r.Epoch -= min(r.Epoch, o.ahead(f))
	return r
}
