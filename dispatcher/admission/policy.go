// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"time"
)

// Policy decides what is refused. It is for one goroutine at a time.
type Policy interface {
	// Update takes the loads of now, or better those to come, and returns what holds from now on.
	Update(loads Loads) Decision
}

// Loads are what a decision goes by, all in one unit: 0 is idle, 1 is all that a host can do. Numbers that are no loads
// (negative, infinite, not a number) are left out.
type Loads struct {
	// Head is l, the load of the host where sessions come in.
	Head float64
	// Nodes are l_j, one for each backend that serves. A backend that is down, or has not reported for too long, is left out. If
	// nothing is known of any, they count as idle.
	Nodes []float64
}

// Decision holds until the next one. Its zero value refuses nothing.
type Decision struct {
	// New and Established are the probabilities, from 0 to 1, with which the first packet of a new session, and each
	// datagram of an established one, is refused. Secondary and announced flows belong to established sessions.
	New, Established float64
	// Connections is how many connections each backend may have; 0: there is no bound.
	Connections int
	// Next is after how long to decide again.
	Next time.Duration

	// What follows is for operators.

	// State is what the probabilities amount to.
	State State
	// Load is x, the greater one of the head's load and Cluster, which is l_c of eq. 1.
	Load, Cluster float64
	// Thresholds are those that the decision was made by.
	Thresholds Thresholds
}

// State says in one word what happens.
type State uint8

// States, in the order in which a rising load goes through them.
const (
	Accepting State = iota // everything is taken
	Thinning               // a share of new sessions is refused
	Closed                 // no new session is taken
	Degrading              // a share of established sessions' datagrams is dropped, too
	Full                   // nothing is taken
)

// String implements fmt.Stringer.
func (s State) String() string {
	names := [...]string{"accepting", "thinning", "closed", "degrading", "full"}
	if int(s) >= len(names) {
		return fmt.Sprintf("state %d", s)
	}
	return names[s]
}

// stateOf names what two probabilities amount to.
func stateOf(newer, established float64) State {
	switch {
	case newer >= 1 && established >= 1:
		return Full
	case established > 0:
		return Degrading
	case newer >= 1:
		return Closed
	case newer > 0:
		return Thinning
	}
	return Accepting
}

// New returns the policy that config asks for. Errors name the setting and say what it may be.
func New(config Config) (Policy, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	switch config.Kind {
	case SA2C:
		return newSA2C(config), nil
	case None, Static, Request, LeastConnections503:
		return &plain{config: config}, nil
	}
	return nil, fmt.Errorf("admission: policy %q: want %s, %s, %s, %s or %s", config.Kind, SA2C, None, Static, Request, LeastConnections503)
}
