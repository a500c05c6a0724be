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

// census tells from one list of a host's connections to the next which of them have ended.
//
//	         met, listed                 listed in TIME_WAIT: End, lingering
//	unknown ─────────────► alive ───────────────────────────────────────────► left over
//	   ▲                     │ not listed any more: End                           │ not listed any more
//	   └─────────────────────┴────────────────────────────────────────────────────┘
type census struct {
	known map[tcprepair.Flow]tcprepair.State
}

func newCensus() *census { return &census{known: make(map[tcprepair.Flow]tcprepair.State)} }

// meet tells of a connection that may be over before the next list is made.
func (c *census) meet(f tcprepair.Flow) { c.known[f] = tcprepair.Established }

// take compares a list with what is known, and returns what has ended since.
func (c *census) take(list []socketState) (ends []sockops.End) {
	now := make(map[tcprepair.Flow]tcprepair.State, len(list))
	for _, s := range list {
		now[s.flow] = s.state
		if s.state == stateTimeWait && c.known[s.flow] != stateTimeWait {
			ends = append(ends, sockops.End{Flow: s.flow, From: tcprepair.FinWait2})
		}
	}
	for f, before := range c.known {
		if _, ok := now[f]; !ok && before != stateTimeWait {
			ends = append(ends, sockops.End{Flow: f, From: tcprepair.LastAck})
		}
	}
	c.known = now
	return ends
}
