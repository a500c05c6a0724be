// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
	"github.com/rehome-net/rehome/dispatcher/session/ftp"
	"github.com/rehome-net/rehome/dispatcher/session/inspect"
	"github.com/rehome-net/rehome/dispatcher/session/rtsp"
	"github.com/rehome-net/rehome/dispatcher/session/sip"
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
func (s *sessions) heard(v *sessionService, k session.Key, p *packet) (*signalling, error) {
	if g := s.signalling[k]; g != nil {
		return g, nil
	}
	parser, err := newParser(v.cfg.Mode, k)
	if err != nil || parser == nil {
		return nil, err
	}
	if k.Protocol == unix.IPPROTO_TCP && p.flags&tcpSYN == 0 && v.cfg.Mode != ModeFTP {
		// In the middle of the stream. A client of FTP says one line at a time, so what begins a segment begins a line.
		parser.Lost()
	}
	g := &signalling{parser: parser}
	s.signalling[k] = g
	return g, nil
}

// listen reads what a client says on a flow, and does what follows from it.
func (s *sessions) listen(now time.Time, v *sessionService, k session.Key, p *packet) {
	if v == nil || !v.cfg.Mode.signals() {
		return
	}
	f, actions, ok := s.table.Touch(now, k, s.actions[:0])
	s.warn(s.perform(now, actions))
	if !ok {
		// It began with a dispatcher before this one: its server goes on. Or it is over, and this packet was on its way.
		if err := s.adopt(now, k); err != nil {
			s.d.log.Debug("a session cannot be taken up", "flow", k, "error", err)
			return
		}
		if f, ok = s.table.Lookup(now, k); !ok {
			return
		}
	}
	g, err := s.heard(v, k, p)
	if err != nil || g == nil {
		s.d.log.Warn("signalling cannot be read", "flow", k, "error", err)
		return
	}
	for _, h := range g.read(p) {
		if err := s.join(now, v, f.Session, h); err != nil {
			s.d.log.Debug("what was announced is not served", "flow", k, "error", err)
		}
	}
	if p.flags&(tcpFIN|tcpRST) != 0 {
		s.hangUp(now, k)
	}
}

// read returns what a packet says.
func (g *signalling) read(p *packet) []inspect.Half {
	if p.Protocol == unix.IPPROTO_UDP {
		return g.parser.Datagram(p.Payload)
	}
	var halves []inspect.Half
	g.stream.add(p.sequence, p.flags, p.Payload, func(b []byte, lost bool) {
		if lost {
			g.parser.Lost()
		}
		halves = append(halves, g.parser.Feed(b)...)
	})
	return halves
}

// named finds the session that the first datagram of a flow names.
func (s *sessions) named(v *sessionService, k session.Key, p *packet) (session.ID, bool) {
	if p.Protocol != unix.IPPROTO_UDP || !v.cfg.Mode.signals() || !v.cfg.sticksToSession() {
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
	o := t.pair.Add(h)
	err := s.follow(now, id, h.Protocol, o)
	if owner, ok := s.table.Named(name(h)); o.Ended && ok && owner == id {
		s.table.Unname(name(h)) // a telephone has many calls in one session, and a session a bounded number of names
	}
	return err
}

// follow carries out an outcome.
func (s *sessions) follow(now time.Time, id session.ID, protocol inspect.Protocol, o inspect.Outcome) error {
	var failed error
	do := func(actions []session.Action, err error) {
		failed = errors.Join(failed, err, s.perform(now, actions))
	}
	for _, f := range o.Findings {
		s.d.count.findings.WithLabelValues(f.Reason.String()).Inc()
	}
	if len(o.Withdraw) > 0 {
		do(s.table.Withdraw(id, o.Withdraw, s.actions[:0]))
	}
	if install := s.allowed(o.Install); len(install) < len(o.Install) {
		failed = errors.Join(failed, errOccupied)
		s.d.count.unannounced.Add(float64(len(o.Install) - len(install)))
		o.Install = install
	}
	if len(o.Install) > 0 {
		actions, err := s.table.Announce(now, id, o.Install, s.actions[:0])
		if err == nil {
			if err = s.perform(now, actions); err != nil {
				// What the path has no room for must not stay in the table: announced again, it would count as installed.
				do(s.table.Withdraw(id, o.Install, s.actions[:0]))
			}
		}
		if err == nil {
			s.d.count.announced.Add(float64(len(o.Install)))
		} else {
			s.d.count.unannounced.Add(float64(len(o.Install)))
			failed = errors.Join(failed, err)
		}
	}
	if o.Identity != "" {
		// Without it the session is not found from other flows; what it has announced is served all the same.
		if err := s.table.Name(id, protocol.String()+":"+o.Identity); err != nil {
			s.d.log.Debug("a session is not known by its name", "session", id, "error", err)
		}
	}
	if o.Timeout > 0 {
		failed = errors.Join(failed, s.table.SetTimeouts(id, session.Timeouts{Signalling: o.Timeout}))
	}
	return failed
}

// errOccupied means that signalling announces a flow to an address of a service, which has its own rules.
var errOccupied = errors.New("an announced flow would take the place of a service")

// allowed returns the announcements that may be followed: none is to take a client's new connections away from a service.
func (s *sessions) allowed(list []session.Announcement) []session.Announcement {
	live := s.d.live.Load()
	occupied := func(a session.Announcement) bool {
		return live.sessions[endpoint{a.Protocol, a.Server}] != nil || a.Protocol == unix.IPPROTO_TCP && live.at[a.Server] != nil
	}
	if !slices.ContainsFunc(list, occupied) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), occupied)
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
