// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"slices"
	"time"

	"github.com/rehome-net/rehome/agent/criu"
	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// connections returns the tree's connections, or why they cannot all move.
func (s *processSource) connections(p *criu.Process) ([]tcprepair.Flow, error) {
	var flows []tcprepair.Flow
	for _, k := range p.Sockets {
		switch {
		case k.Connects:
			return nil, fmt.Errorf("%w, from %v", errConnecting, k.Local)
		case !k.TCP || !k.Remote.IsValid():
			continue
		}
		f := tcprepair.NewFlow(k.Local, k.Remote)
		if !slices.Contains(s.addresses, f.Local) {
			return nil, fmt.Errorf("%w: %v", errOwnFlow, f)
		}
		flows = append(flows, f)
	}
	return flows, nil
}

// shut lets new connections wait at the entry, so that those under way can come to rest.
func (s *processSource) shut() {
	s.ask(&wire.Shut{}, func(err error) {
		if err != nil {
			s.step(migration.Event{Kind: migration.Canceled, Err: err})
			return
		}
		go s.rest()
	})
}

// rest waits until no connection is half-way between the network and the tree, and looks at the tree then. It runs beside the engine.
func (s *processSource) rest() {
	var p *criu.Process
	err := errHandshakes
	for deadline := time.Now().Add(restTime); err != nil && time.Now().Before(deadline); {
		var n int
		if n, err = handshakes(s.addresses); err == nil && n == 0 && s.process.Waiting() == 0 {
			break
		}
		err = errHandshakes
		time.Sleep(restPause)
	}
	if s.process.Waiting() == 0 {
		// A handshake that hangs is no reason: its client will begin anew.
		p, err = criu.Inspect(s.process.PID)
	}
	s.e.post(func(*engine) { s.rested(p, err) })
}

// rested tells target and entry which connections go.
func (s *processSource) rested(p *criu.Process, err error) {
	if s.over {
		return
	}
	if err == nil {
		s.flows, err = s.connections(p)
	}
	if err != nil {
		s.step(migration.Event{Kind: migration.Canceled, Err: err})
		return
	}
	s.process, s.result.Connections = p, len(s.flows)
	s.announce(s.flows)
}

// announce sends the connections in frames of a bounded size. The entry answers each.
func (s *processSource) announce(flows []tcprepair.Flow) {
	n := min(len(flows), wire.MaxFlowSet)
	if n == 0 {
		s.step(migration.Event{Kind: migration.Exported})
		return
	}
	m := &wire.FlowSet{Flows: flows[:n]}
	if s.target != s.entry {
		s.toTarget(m)
	}
	s.ask(m, func(err error) {
		if err != nil {
			s.step(migration.Event{Kind: migration.Canceled, Err: err})
			return
		}
		s.announce(flows[n:])
	})
}
