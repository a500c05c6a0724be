// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/gateway"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/handoff/gate"
)

// perform carries out what the table says, all of it.
func (s *sessions) perform(now time.Time, actions []session.Action) error {
	s.actions = nil // an action may lead to others
	var failed error
	for _, a := range actions {
		if err := s.carryOut(now, a); err != nil {
			failed = errors.Join(failed, fmt.Errorf("the packet path does not follow a session: %v: %w", a, err))
		}
	}
	if cap(actions) > cap(s.actions) {
		s.actions = actions[:0]
	}
	return failed
}

// warn logs what nobody else is told.
func (s *sessions) warn(err error) {
	if err != nil {
		s.d.log.Warn("sessions", "error", err)
	}
}

func (s *sessions) carryOut(now time.Time, a session.Action) error {
	switch a.Kind {
	case session.Install:
		if a.Identity == session.Signalling {
			return nil // it has been assigned
		}
		if a.Identity == session.Secondary {
			// As a rule the path has it, for its first packet has come. Else its ports were another session's.
			r, err := s.path.Locate(a.Key.Protocol, flowOf(a.Key))
			if err == nil && r.Node == gate.Node(a.Server) {
				return nil
			}
		}
		return s.path.Announce(s.announcement(a))
	case session.Remove:
		err := s.path.Withdraw(s.announcement(a))
		if a.Key.Client.Port() != 0 && a.Key.Server.Port() != 0 {
			s.hangUp(now, a.Key)
			err = errors.Join(err, s.path.Drop(a.Key.Protocol, flowOf(a.Key)))
		}
		return err
	case session.Over:
		delete(s.pairs, a.Session)
		delete(s.arrived, a.Session)
		if v := s.departures[a.Session]; v != nil { // nobody is left to take what waits
			s.held -= len(v.held)
			delete(s.departures, a.Session)
		}
		delete(s.returning, a.Session)
		if b := s.d.host(gate.Node(a.Server)); b != nil {
			lower(&b.active)
		}
	}
	return nil
}

// announcedTime is how long the path waits for an announced flow. The table says earlier when it is over: this bounds what a dispatcher that
// was killed leaves behind.
const announcedTime = 2 * connectionTimeout

// announcement returns an action's flow as the path knows it.
func (s *sessions) announcement(a session.Action) forward.Announcement {
	p := forward.Announcement{
		Client: a.Key.Client, Server: a.Key.Server, Protocol: a.Key.Protocol, Node: gate.Node(a.Server), Lifetime: announcedTime,
		Inspect: s.departures[a.Session] != nil && waits(a.Key),
	}
	if d := s.pairs[a.Session]; d != nil {
		p.Service = forward.Service{Address: d.flow.Server, Protocol: d.flow.Protocol}
	}
	return p
}

// install takes in what a server has said on a signalling flow. It returns when what that announces is installed.
func (s *sessions) install(_ context.Context, said gateway.Said) error {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.d.live.Load().sessions[endpoint{said.Flow.Protocol, said.Flow.Server}]
	if v == nil || !v.cfg.Mode.signals() {
		return fmt.Errorf("%v is no service with signalling", said.Flow.Server)
	}
	f, ok := s.table.Lookup(now, said.Flow)
	if !ok && s.adopt(now, said.Flow) == nil {
		f, ok = s.table.Lookup(now, said.Flow)
	}
	if !ok || f.Identity != session.Signalling {
		return fmt.Errorf("no session has the flow %v", said.Flow)
	}
	var failed error
	for _, h := range said.Halves {
		failed = errors.Join(failed, s.join(now, v, f.Session, h))
	}
	return failed
}
