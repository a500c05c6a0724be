// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/rtsp"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
	"github.com/rehome-net/rehome/handoff/gate"
)

// signalling is the client's half of one flow of signalling (SARA 6).
type signalling struct {
	parser inspect.Parser
	stream clientStream
}

// dialogue joins what both sides of a session say (SARA 7).
type dialogue struct {
	pair inspect.Pair
	flow session.Key // the first of its flows
}

// newParser returns a parser of what the client says on a flow, nil for modes without signalling.
func newParser(m Mode, k session.Key) (inspect.Parser, error) {
	switch m {
	case ModeRTSP:
		return rtsp.NewParser(rtsp.Config{}, k, inspect.Client)
	case ModeSIP:
		return sip.NewParser(sip.Config{}, k, inspect.Client)
	case ModeFTP:
		return ftp.NewParser(ftp.Config{}, k, inspect.Client)
	}
	return nil, nil
}

func newPair(m Mode) (inspect.Pair, error) {
	switch m {
	case ModeRTSP:
		return rtsp.NewPair(rtsp.Config{})
	case ModeSIP:
		return sip.NewPair(sip.Config{})
	case ModeFTP:
		return ftp.NewPair(ftp.Config{})
	}
	return nil, nil
}

// heard returns the parser of a flow.
func (s *sessions) heard(v *sessionService, k session.Key) (*signalling, error) {
	if g := s.signalling[k]; g != nil {
		return g, nil
	}
	parser, err := newParser(v.cfg.Mode, k)
	if err != nil || parser == nil {
		return nil, err
	}
	g := &signalling{parser: parser}
	s.signalling[k] = g
	return g, nil
}

// listen reads what a client says on a flow that is node's, and does what follows from it.
func (s *sessions) listen(now time.Time, v *sessionService, k session.Key, node gate.Node, p *forward.Diverted) {
	if v == nil || !v.cfg.Mode.signals() {
		return
	}
	f, actions, ok := s.table.Touch(now, k, s.actions[:0])
	s.perform(now, actions)
	if !ok {
		// It began with a dispatcher before this one: its server goes on.
		if err := s.open(now, k, node); err != nil {
			s.d.log.Warn("a session cannot be taken up", "flow", k, "error", err)
			return
		}
		if f, ok = s.table.Lookup(now, k); !ok {
			return
		}
	}
	g, err := s.heard(v, k)
	if err != nil || g == nil {
		s.d.log.Warn("signalling cannot be read", "flow", k, "error", err)
		return
	}
	for _, h := range g.read(p) {
		if err := s.join(now, v, f.Session, h); err != nil {
			s.d.log.Info("what was announced is not served", "flow", k, "error", err)
		}
	}
	if p.Flags&(tcpFIN|tcpRST) != 0 {
		s.hangUp(now, k)
	}
}

// read returns what a packet says.
func (g *signalling) read(p *forward.Diverted) []inspect.Half {
	if p.Protocol == unix.IPPROTO_UDP {
		return g.parser.Datagram(p.Payload)
	}
	sequence, flags := p.Sequence, p.Flags
	var halves []inspect.Half
	g.stream.add(sequence, flags, p.Payload, func(b []byte, lost bool) {
		if lost {
			g.parser.Lost()
		}
		halves = append(halves, g.parser.Feed(b)...)
	})
	return halves
}

// named finds the session that the first datagram of a flow names.
func (s *sessions) named(v *sessionService, k session.Key, p *forward.Diverted) (session.ID, bool) {
	if p.Protocol != unix.IPPROTO_UDP || !v.cfg.Mode.signals() {
		return 0, false
	}
	// A parser of its own: the one that stays reads the datagram when its session is known.
	parser, err := newParser(v.cfg.Mode, k)
	if err != nil {
		return 0, false
	}
	for _, h := range parser.Datagram(p.Payload) {
		if id, ok := s.table.Named(name(h)); ok && h.Session != "" {
			return id, true
		}
	}
	return 0, false
}

// name is what a session is found by, whichever flow its signalling goes on over.
func name(h inspect.Half) string { return h.Protocol.String() + ":" + h.Session }

// join takes in what one side of a session has said.
func (s *sessions) join(now time.Time, v *sessionService, id session.ID, h inspect.Half) error {
	t := s.pairs[id]
	if t == nil {
		pair, err := newPair(v.cfg.Mode)
		if err != nil {
			return err
		}
		t = &dialogue{pair: pair, flow: h.Flow}
		s.pairs[id] = t
	}
	return s.follow(now, id, h.Protocol, t.pair.Add(h))
}

// follow carries out an outcome.
func (s *sessions) follow(now time.Time, id session.ID, protocol inspect.Protocol, o inspect.Outcome) error {
	var failed error
	do := func(actions []session.Action, err error) {
		s.perform(now, actions)
		failed = errors.Join(failed, err)
	}
	for _, f := range o.Findings {
		s.d.count.findings.WithLabelValues(f.Reason.String()).Inc()
	}
	if len(o.Withdraw) > 0 {
		do(s.table.Withdraw(id, o.Withdraw, s.actions[:0]))
	}
	if len(o.Install) > 0 {
		do(s.table.Announce(now, id, o.Install, s.actions[:0]))
		if failed == nil {
			s.d.count.announced.Add(float64(len(o.Install)))
		} else {
			s.d.count.unannounced.Add(float64(len(o.Install)))
		}
	}
	if o.Identity != "" {
		failed = errors.Join(failed, s.table.Name(id, protocol.String()+":"+o.Identity))
	}
	if o.Timeout > 0 {
		failed = errors.Join(failed, s.table.SetTimeouts(id, session.Timeouts{Signalling: o.Timeout}))
	}
	return failed
}

// hangUp ends a flow of signalling: its client has.
func (s *sessions) hangUp(now time.Time, k session.Key) {
	g := s.signalling[k]
	if g == nil {
		return
	}
	delete(s.signalling, k)
	f, ok := s.table.Lookup(now, k)
	if !ok || k.Protocol != unix.IPPROTO_TCP {
		return
	}
	if t := s.pairs[f.Session]; t != nil {
		if err := s.follow(now, f.Session, 0, t.pair.Closed(k)); err != nil {
			s.d.log.Info("the end of signalling cannot be followed", "flow", k, "error", err)
		}
	}
}
