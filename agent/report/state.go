// SPDX-License-Identifier: Apache-2.0

package report

import (
	"maps"
	"math"
	"sync"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// word is what this host is told to say of itself. Its fields are exported for encoding/json: a Process passes it on.
type word struct {
	// Down names what sessions need and is not there.
	Down map[string]bool `json:"down,omitempty"`
	// Loads are what applications say of themselves.
	Loads map[string]float64 `json:"loads,omitempty"`
	// Failure is the time of a planned failure; zero for none.
	Failure  time.Time `json:"failure"`
	Sessions uint32    `json:"sessions,omitempty"`
}

// news reports whether heartbeats say something else after next has replaced w.
func (w *word) news(next *word) bool {
	return !maps.Equal(w.Down, next.Down) || !w.Failure.Equal(next.Failure)
}

// application is the highest load that was set.
func (w *word) application() vitals.Share {
	highest := vitals.Unknown
	for _, l := range w.Loads {
		if share := vitals.ShareOf(l); highest == vitals.Unknown || share != vitals.Unknown && share > highest {
			highest = share
		}
	}
	return highest
}

// state is what heartbeats and load vectors say beside what the kernel does. It is replaced, never changed, so that the thread that sends
// heartbeats needs no lock.
type state struct {
	word
	// deserted means that nobody listens where somebody must.
	deserted bool
}

// heartbeat returns flag and stamp of one that is sent now. An application that is down comes before a planned failure: it is out
// already.
func (s *state) heartbeat(now time.Time) (vitals.Flag, uint32) {
	switch {
	case len(s.Down) > 0 || s.deserted:
		return vitals.ApplicationDown, vitals.StampOf(now)
	case s.Failure.IsZero():
		return vitals.Available, vitals.StampOf(now)
	}
	// A time further off than a stamp can tell is told as the furthest, and moves on with the heartbeats.
	at := s.Failure
	if last := now.Add(vitals.MaxPlan); at.After(last) {
		at = last
	}
	if at.Before(now) {
		at = now
	}
	return vitals.PlannedFailure, vitals.StampOf(at)
}

// Teller is where others say what dispatchers shall hear; a Reporter and a Process each are one. Its methods are safe for concurrent
// use, at any time.
type Teller struct {
	mu   sync.Mutex
	word word
	// tell passes the word on; it is called under mu.
	tell func(word)
}

// SetDown says that something that sessions need is down, or up again. Heartbeats say that the application is down as long as anything is.
// The name is the caller's.
func (t *Teller) SetDown(name string, down bool) {
	t.change(func(w *word) {
		delete(w.Down, name)
		if down {
			w.Down[name] = true
		}
	})
}

// SetLoad says how loaded an application finds itself, 0 to 1; NaN that it does not say so any more. Dispatchers hear of the highest, with
// the next load vector.
func (t *Teller) SetLoad(name string, load float64) {
	t.change(func(w *word) {
		w.Loads[name] = min(max(load, 0), 1)
		if math.IsNaN(load) {
			delete(w.Loads, name)
		}
	})
}

// SetSessions says how many sessions this host serves that are no TCP connections at its services' addresses: those are counted.
func (t *Teller) SetSessions(n uint32) { t.change(func(w *word) { w.Sessions = n }) }

// Announce says that this host will fail at a time: dispatchers give it no new sessions from now on, and none at all from then on
// (SARA 27). It holds until Retract.
func (t *Teller) Announce(at time.Time) { t.change(func(w *word) { w.Failure = at.Round(0) }) }

// Retract takes Announce back.
func (t *Teller) Retract() { t.change(func(w *word) { w.Failure = time.Time{} }) }

func (t *Teller) change(f func(w *word)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.word
	next.Down, next.Loads = clone(t.word.Down), clone(t.word.Loads)
	f(&next)
	t.word = next
	t.tell(next)
}

// clone never returns nil.
func clone[V any](m map[string]V) map[string]V {
	c := make(map[string]V, len(m)+1)
	maps.Copy(c, m)
	return c
}
