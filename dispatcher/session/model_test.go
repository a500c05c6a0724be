// SPDX-License-Identifier: Apache-2.0

package session

import (
	"net/netip"
	"slices"
	"time"
)

// model is what a Table does in its plainest form: lists, and a pass over all of them for everything.
type model struct {
	config   Config
	sessions []*modelSession // in the order in which they were opened or moved
}

type modelSession struct {
	id       ID
	server   Server
	client   netip.Prefix
	timeouts Timeouts
	until    time.Time
	names    []string
	flows    []*modelFlow
}

type modelFlow struct {
	key      Key
	pattern  Key // as announced
	identity Identity
	used     bool
	media    string
	seen     time.Time
	timeout  time.Duration
}

func (f *modelFlow) overdue(now time.Time) bool { return now.Sub(f.seen) >= 2*f.timeout }

func (f *modelFlow) withdrawable() bool {
	return f.identity == Announced || f.identity == Secondary && f.key.Protocol == 17
}

func modelClient(k Key) netip.Prefix {
	bits := 32
	if k.Client.Addr().Is6() {
		bits = 64
	}
	return netip.PrefixFrom(k.Client.Addr(), bits).Masked()
}

func open(k Key, client, server bool) Key {
	if client {
		k.Client = netip.AddrPortFrom(k.Client.Addr(), 0)
	}
	if server {
		k.Server = netip.AddrPortFrom(k.Server.Addr(), 0)
	}
	return k
}

func modelValid(k Key, ports int) bool {
	n := 0
	if k.Client.Port() != 0 {
		n++
	}
	if k.Server.Port() != 0 {
		n++
	}
	return n >= ports && k.Client.Addr().Is4() == k.Server.Addr().Is4() && (k.Protocol == 6 || k.Protocol == 17)
}

func (m *model) find(k Key) (*modelSession, *modelFlow) {
	for _, s := range m.sessions {
		for _, f := range s.flows {
			if f.key == k {
				return s, f
			}
		}
	}
	return nil, nil
}

func (m *model) search(k Key) (*modelSession, *modelFlow) {
	if !modelValid(k, 2) {
		return nil, nil
	}
	for _, k := range []Key{k, open(k, true, false), open(k, false, true)} {
		if s, f := m.find(k); s != nil {
			return s, f
		}
	}
	return nil, nil
}

func (m *model) session(id ID) *modelSession {
	for _, s := range m.sessions {
		if s.id == id {
			return s
		}
	}
	return nil
}

func (m *model) named(name string) *modelSession {
	for _, s := range m.sessions {
		if slices.Contains(s.names, name) {
			return s
		}
	}
	return nil
}

// of returns the client's session that was opened or moved last.
func (m *model) of(client netip.Prefix) (last *modelSession) {
	for _, s := range m.sessions {
		if s.client == client {
			last = s
		}
	}
	return last
}

// flows counts all, and those of a client.
func (m *model) flows(client netip.Prefix) (all, of int) {
	for _, s := range m.sessions {
		all += len(s.flows)
		if s.client == client {
			of += len(s.flows)
		}
	}
	return all, of
}

func (s *modelSession) media() (n int) {
	for _, f := range s.flows {
		if f.identity != Signalling {
			n++
		}
	}
	return n
}

func (s *modelSession) add(f *modelFlow) {
	f.timeout = s.timeouts.Media
	if f.identity == Signalling {
		f.timeout = s.timeouts.Signalling
	}
	s.flows = append(s.flows, f)
	s.extend(f)
}

func (s *modelSession) extend(f *modelFlow) {
	if e := f.seen.Add(2 * f.timeout); e.After(s.until) {
		s.until = e
	}
}

// drop removes flows, and the session with the last.
func (m *model) drop(s *modelSession, which func(*modelFlow) bool) {
	s.flows = slices.DeleteFunc(s.flows, which)
	if len(s.flows) == 0 {
		m.sessions = slices.DeleteFunc(m.sessions, func(o *modelSession) bool { return o == s })
	}
}

func (m *model) room(client netip.Prefix, n int) error {
	all, of := m.flows(client)
	switch {
	case all+n > m.config.MaxFlows:
		return ErrFull
	case of+n > m.config.MaxPerClient:
		return ErrClientFull
	}
	return nil
}

func (m *model) fresh(k Key) error {
	if !modelValid(k, 2) {
		return ErrKey
	}
	if s, _ := m.find(k); s != nil {
		return ErrKnown
	}
	return nil
}

func (m *model) open(now time.Time, k Key, terms Terms) (*modelSession, error) {
	if err := m.fresh(k); err != nil {
		return nil, err
	}
	if err := m.room(modelClient(k), 1); err != nil {
		return nil, err
	}
	s := &modelSession{server: terms.Server, client: modelClient(k), timeouts: terms.Timeouts.or(m.config.Timeouts)}
	s.add(&modelFlow{key: k, seen: now})
	m.sessions = append(m.sessions, s)
	return s, nil
}

func (m *model) join(now time.Time, id ID, k Key) error {
	s := m.session(id)
	if s == nil {
		return ErrNoSession
	}
	if err := m.fresh(k); err != nil {
		return err
	}
	if err := m.room(s.client, 1); err != nil {
		return err
	}
	if len(s.flows)-s.media() >= m.config.MaxSignalling {
		return ErrSessionFull
	}
	s.add(&modelFlow{key: k, seen: now})
	return nil
}

func (m *model) touch(now time.Time, k Key) bool {
	s, f := m.search(k)
	if s == nil {
		return false
	}
	if now.Before(f.seen) {
		return true
	}
	f.seen, f.used = now, true
	if f.identity == Announced {
		f.identity, f.key = Secondary, k
	}
	s.extend(f)
	return true
}

func (m *model) announce(now time.Time, id ID, list []Announcement) error {
	s := m.session(id)
	if s == nil {
		return ErrNoSession
	}
	if len(list) > m.config.MaxAnnounced {
		return ErrSessionFull
	}
	fresh := map[Key]*modelFlow{}
	var order []Key
	taken := map[*modelFlow]*modelSession{}
	media := map[*modelFlow]string{}
	for _, a := range list {
		k := Key{a.Client, a.Server, a.Protocol}
		if !modelValid(k, 1) {
			return ErrKey
		}
		o, f := m.find(k)
		switch {
		case o == nil:
			if fresh[k] == nil {
				fresh[k] = &modelFlow{key: k, pattern: k, identity: Announced, media: a.Media, seen: now}
				order = append(order, k)
			}
		case o == s:
			if now.After(f.seen) {
				f.seen = now
			}
			s.extend(f)
		case f.identity == Signalling && o.server == s.server:
		case f.identity != Signalling && (o.server == s.server || f.overdue(now)):
			if taken[f] == nil {
				taken[f], media[f] = o, a.Media
			}
		default:
			return ErrConflict
		}
	}
	idle := func(f *modelFlow) bool { return f.identity != Signalling && f.overdue(now) }
	space := func(gone int) error {
		all, of := m.flows(s.client)
		switch {
		case s.media()-gone+len(fresh)+len(taken) > m.config.MaxAnnounced:
			return ErrSessionFull
		case all-gone+len(fresh) > m.config.MaxFlows:
			return ErrFull
		case of-gone+len(fresh)+len(taken) > m.config.MaxPerClient:
			return ErrClientFull
		}
		return nil
	}
	if err := space(0); err != nil {
		gone := 0
		for _, f := range s.flows {
			if idle(f) {
				gone++
			}
		}
		if space(gone) != nil {
			return err
		}
		s.flows = slices.DeleteFunc(s.flows, idle)
	}
	for _, k := range order {
		s.add(fresh[k])
	}
	for f, from := range taken {
		m.drop(from, func(o *modelFlow) bool { return o == f })
		f.media = media[f]
		if now.After(f.seen) {
			f.seen = now
		}
		s.add(f)
	}
	return nil
}

func (m *model) withdraw(id ID, list []Announcement) error {
	s := m.session(id)
	if s == nil {
		return ErrNoSession
	}
	next := func(a netip.AddrPort) netip.AddrPort {
		if a.Port() == 0 {
			return a
		}
		return netip.AddrPortFrom(a.Addr(), a.Port()+1)
	}
	m.drop(s, func(f *modelFlow) bool {
		return f.withdrawable() && slices.ContainsFunc(list, func(a Announcement) bool {
			k := Key{a.Client, a.Server, a.Protocol}
			rtcp := Key{next(a.Client), next(a.Server), a.Protocol}
			return modelValid(k, 0) && (k == f.key || k == f.pattern || f.media == "rtcp" && a.Protocol == 17 && rtcp == f.pattern)
		})
	})
	return nil
}

func (m *model) end(k Key) bool {
	s, f := m.find(k)
	if s == nil || !modelValid(k, 2) {
		return false
	}
	m.drop(s, func(o *modelFlow) bool { return o == f })
	return true
}

func (m *model) setTimeouts(id ID, timeouts Timeouts) error {
	s := m.session(id)
	if s == nil {
		return ErrNoSession
	}
	for _, d := range []*time.Duration{&timeouts.Signalling, &timeouts.Media} {
		if *d != 0 {
			*d = min(max(*d, 10*time.Second), 24*time.Hour)
		}
	}
	s.timeouts, s.until = timeouts.or(s.timeouts), time.Time{}
	flows := s.flows
	s.flows = nil
	for _, f := range flows {
		s.add(f)
	}
	return nil
}

func (m *model) name(id ID, text string) error {
	s, has := m.session(id), m.named(text)
	names := 0
	for _, o := range m.sessions {
		names += len(o.names)
	}
	switch {
	case s == nil:
		return ErrNoSession
	case text == "":
		return ErrName
	case has != nil && has.server != s.server:
		return ErrConflict
	case has != nil:
	case len(s.names) >= m.config.MaxNames:
		return ErrSessionFull
	case names >= m.config.MaxFlows:
		return ErrFull
	default:
		s.names = append(s.names, text)
	}
	return nil
}

func (m *model) move(id ID, server Server) error {
	s := m.session(id)
	if s == nil {
		return ErrNoSession
	}
	if s.server != server {
		s.server = server
		m.sessions = append(slices.DeleteFunc(m.sessions, func(o *modelSession) bool { return o == s }), s)
	}
	return nil
}

// mayPurge reports whether Purge may remove the flow now.
func (s *modelSession) mayPurge(now time.Time, f *modelFlow) bool {
	return !now.Before(s.until) || s.timeouts.Apart && f.identity != Signalling && f.overdue(now)
}
