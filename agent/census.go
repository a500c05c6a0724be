// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/tcprepair"
)

// socketState is a connection that the kernel has, or what is left of it.
type socketState struct {
	flow  tcprepair.Flow
	state tcprepair.State
}

// census tells from one list of a host's connections to the next which of them have ended. A list is not of one moment: a connection that is met while
// it is being made may be on none, and the kernel may leave one out that it has. So only two lists without it say that it is over.
//
//	         met, listed                 listed in TIME_WAIT: End, lingering
//	unknown ─────────────► alive ───────────────────────────────────────────► left over
//	   ▲                   │   ▲                                                  │ not listed any more
//	   │        not listed ▼   │ listed                                           │
//	   ├─────────────────── missed                                                │
//	   │  not listed: End                                                         │
//	   └──────────────────────────────────────────────────────────────────────────┘
type census struct {
	known map[tcprepair.Flow]sighting
}

// sighting is what was last seen of a connection, and whether it was missed since.
type sighting struct {
	state  tcprepair.State
	missed bool
}

func newCensus() *census { return &census{known: make(map[tcprepair.Flow]sighting)} }

// meet tells of a connection that may be over before the next list is made.
func (c *census) meet(f tcprepair.Flow) { c.known[f] = sighting{state: tcprepair.Established} }

// take compares a list with what is known, and returns what has ended since.
func (c *census) take(list []socketState) (ends []sockops.End) {
	now := make(map[tcprepair.Flow]sighting, len(list))
	for _, s := range list {
		now[s.flow] = sighting{state: s.state}
		if s.state == stateTimeWait && c.known[s.flow].state != stateTimeWait {
			ends = append(ends, sockops.End{Flow: s.flow, From: tcprepair.FinWait2})
		}
	}
	for f, before := range c.known {
		switch _, listed := now[f]; {
		case listed || before.state == stateTimeWait:
		case before.missed:
			ends = append(ends, sockops.End{Flow: f, From: tcprepair.LastAck})
		default:
			now[f] = sighting{state: before.state, missed: true}
		}
	}
	c.known = now
	return ends
}
