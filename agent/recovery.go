// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/migration"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// recover takes up a move that an agent before this one left behind when it died: the application kept the socket,
// the entry kept the owner, and that is enough to end it. It owns fd.
func (e *engine) recover(a *application, id uint64, m *wire.Recover, fd int) {
	svc, ok := e.service(m.Service, m.Flow)
	if !ok {
		closeFD(fd)
		a.send(id, refusal(errNotServed))
		return
	}
	if e.sources[id] != nil || e.targets[id] != nil || e.moving[m.Flow] != nil || e.taking[m.Flow] != nil {
		closeFD(fd)
		a.send(id, refusal(errMoving))
		return
	}
	// An application may speak for its own connections only.
	if o, err := tcprepair.ReadOutline(fd); err != nil || o.Flow != m.Flow {
		closeFD(fd)
		a.send(id, refusal(fmt.Errorf("the socket is not that of %v", m.Flow)))
		return
	}
	e.counters.recovered++
	e.log.Info("taking up a move that a former agent began", "flow", m.Flow, "target", m.Target, "peer", m.Peer)
	now := time.Now()
	if m.Target {
		e.recoverTarget(now, a, id, m, svc, fd)
		return
	}
	s := &source{
		e: e, id: id, flow: m.Flow, service: m.Service, epoch: m.Epoch, app: a, target: m.Peer, entry: svc.Entry,
		fd: fd, started: now, frozenAt: now, done: func(Moved) {},
	}
	if e.peers[m.Peer] == nil {
		s.target = ""
	}
	// The former agent's hold may have been another's, or be about to lapse.
	if err := e.gate.Hold(s.flow, holdBoth, e.times.HoldTTL()); err != nil {
		e.log.Error("cannot hold packets", "flow", s.flow, "error", err)
	}
	machine, actions := migration.RecoverSource(now, migration.SourceParams{
		Host: e.cfg.Host, Target: s.target, Epoch: m.Epoch,
	}, e.times)
	s.machine = machine
	e.sources[id], e.moving[s.flow] = s, s
	s.begin(now, actions)
}

func (e *engine) recoverTarget(now time.Time, a *application, id uint64, m *wire.Recover, svc ServiceConfig, fd int) {
	t := &target{
		e: e, id: id, flow: m.Flow, service: m.Service, epoch: m.Epoch, app: a, entry: svc.Entry, started: now,
		from: &incoming{e: e, name: "former agent"}, recovering: true, late: m.Late, held: true,
	}
	restored, err := tcprepair.Adopt(fd)
	if err != nil {
		_ = unix.Close(fd)
		a.send(id, refusal(fmt.Errorf("take over the restored socket: %w", err)))
		return
	}
	t.restored = restored
	machine, actions := migration.RecoverTarget(now, migration.TargetParams{Host: e.cfg.Host, Epoch: m.Epoch}, e.times)
	t.machine = machine
	e.targets[id], e.taking[t.flow] = t, t
	t.begin(now, actions)
}
