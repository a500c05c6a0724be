// SPDX-License-Identifier: Apache-2.0

package report

import (
	"maps"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// state is what heartbeats and load vectors say beside what the kernel does. It is replaced, never changed, so that the thread that sends
// heartbeats needs no lock.
type state struct {
	// down names what sessions need and is not there.
	down map[string]bool
	// loads are what applications say of themselves.
	loads map[string]float64
	// failure is the time of a planned failure; zero for none.
	failure  time.Time
	sessions uint32
}

func (s *state) clone() *state {
	c := *s
	c.down, c.loads = maps.Clone(s.down), maps.Clone(s.loads)
	return &c
}

// heartbeat returns flag and stamp of one that is sent now. An application that is down comes before a planned failure: it is out
// already.
func (s *state) heartbeat(now time.Time) (vitals.Flag, uint32) {
	switch {
	case len(s.down) > 0:
		return vitals.ApplicationDown, vitals.StampOf(now)
	case s.failure.IsZero():
		return vitals.Available, vitals.StampOf(now)
	}
	// A time further off than a stamp can tell is told as the furthest, and moves on with the heartbeats.
	at := s.failure
	if last := now.Add(vitals.MaxPlan); at.After(last) {
		at = last
	}
	if at.Before(now) {
		at = now
	}
	return vitals.PlannedFailure, vitals.StampOf(at)
}

// application is the highest load that was set.
func (s *state) application() vitals.Share {
	highest := vitals.Unknown
	for _, l := range s.loads {
		if share := vitals.ShareOf(l); highest == vitals.Unknown || share != vitals.Unknown && share > highest {
			highest = share
		}
	}
	return highest
}
