// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// This file counts the connections that backends and services have: what least-connections goes by, and what limits bound. The counts are
// of this process: they begin at 0 when it starts, follow what agents report, and never go below 0. A connection whose end nobody reports
// (an agent that is dead, or cannot load the program) stays in them until the next start.

// lower takes one from a count.
func lower(n *atomic.Int64) {
	for {
		v := n.Load()
		if v <= 0 || n.CompareAndSwap(v, v-1) {
			return
		}
	}
}

// flowEnded forgets a flow whose connection is over, if it is still the backend's that says so, and has been quiet: the client may have
// opened another connection from the same port meanwhile.
func (d *Dispatcher) flowEnded(b *backend, m *wire.Ended) {
	r, err := d.path.Route(m.Flow)
	if err != nil || r.Node != b.node || r.Idle < m.Quiet || m.Epoch != 0 && m.Epoch != r.Epoch {
		return
	}
	d.forget(m.Flow)
	if d.sessions != nil {
		// A backend's sessions are counted, not their connections; those of a service that has left the configuration, too.
		known := d.sessions.ended(unix.IPPROTO_TCP, m.Flow)
		if known || d.live.Load().sessions[endpoint{unix.IPPROTO_TCP, m.Flow.Local}] != nil {
			return
		}
	}
	lower(&b.active)
	if s := d.serviceAt(m.Flow); s != nil {
		lower(s.active)
	}
}

// flowMoved follows a connection that has moved from one backend to another.
func (d *Dispatcher) flowMoved(from, to gate.Node) {
	for _, b := range d.live.Load().backends {
		switch {
		case from == to:
		case b.node == from:
			lower(&b.active)
		case b.node == to:
			b.active.Add(1)
		}
	}
}

// ownerOf returns the node that has a flow; 0 when the table does not know it.
func (d *Dispatcher) ownerOf(f tcprepair.Flow) gate.Node {
	r, err := d.path.Route(f)
	if err != nil || !r.Entry() {
		return 0
	}
	return r.Node
}

// serviceAt returns the service that a flow's address belongs to, if any.
func (d *Dispatcher) serviceAt(f tcprepair.Flow) *service {
	return d.live.Load().at[f.Local]
}
