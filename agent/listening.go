// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"slices"
	"time"
)

// lookPause is how often this host looks who listens for services that are processes.
const lookPause = 200 * time.Millisecond

// lookForListeners begins to look, if it is time.
func (e *engine) lookForListeners(now time.Time) {
	if e.looking || now.Before(e.lookAt) || !e.hasProcesses() {
		return
	}
	e.looking, e.lookAt = true, now.Add(lookPause)
	began := e.looked
	go func() {
		found, err := whoListens()
		e.post(func(*engine) {
			e.looking = false
			if e.looked != began {
				return
			}
			if err != nil {
				e.log.Warn("cannot see who listens on this host", "error", err)
				return
			}
			e.heardListeners(found)
		})
	}()
}

// heardListeners takes in who listens on this host, and tells the entries what has changed. A service whose process is coming or going just now is
// left to its move.
func (e *engine) heardListeners(found []netip.AddrPort) {
	tell := make(map[string]bool)
	for _, s := range e.cfg.Services {
		if !s.Process || !slices.Contains(s.Servers, e.cfg.Host) || e.processMoves(s) {
			continue
		}
		now := slices.ContainsFunc(s.Addresses, func(a netip.AddrPort) bool { return listensAt(found, a) })
		if was, known := e.listening[s.Name]; was != now || !known {
			e.listening[s.Name] = now
			tell[s.Entry] = true
		}
	}
	e.tellIdle(tell)
}

// tellIdle tells entries what nobody listens for here.
func (e *engine) tellIdle(entries map[string]bool) {
	for host := range entries {
		if p := e.peers[host]; p != nil {
			p.tellPresence()
		} else {
			e.setServices()
		}
	}
}

// nowListening takes in that a process has come, or gone, with its move: no look is needed, and none of before counts.
func (e *engine) nowListening(addresses []netip.AddrPort, here bool) {
	e.looked++
	tell := make(map[string]bool)
	for _, s := range e.cfg.Services {
		if s.Process && slices.ContainsFunc(s.Addresses, func(a netip.AddrPort) bool { return slices.Contains(addresses, a) }) {
			e.listening[s.Name] = here
			tell[s.Entry] = true
		}
	}
	e.tellIdle(tell)
}

// listensAt reports whether one of the addresses takes connections to a.
func listensAt(found []netip.AddrPort, a netip.AddrPort) bool {
	return slices.ContainsFunc(found, func(l netip.AddrPort) bool {
		if l.Port() != a.Port() {
			return false
		}
		addr := l.Addr().Unmap()
		if addr.IsUnspecified() {
			return addr.Is6() || a.Addr().Is4() // [::] takes both, as a rule
		}
		return addr == a.Addr()
	})
}

// idleFor returns the services of an entry that nobody listens for here.
func (e *engine) idleFor(entry string) []string {
	var idle []string
	for _, s := range e.cfg.Services {
		if s.Process && s.Entry == entry && slices.Contains(s.Servers, e.cfg.Host) && !e.listening[s.Name] {
			idle = append(idle, s.Name)
		}
	}
	return idle
}
