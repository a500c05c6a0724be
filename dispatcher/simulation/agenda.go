// SPDX-License-Identifier: Apache-2.0

package simulation

// kind is what an event is.
type kind uint8

const (
	arrival  kind = iota // a session comes
	request              // a session sends a request, or sends it again; who is the session
	answer               // a server has served a request; who is the server
	report               // all servers report
	decision             // admission decides
	change               // the next of Config.Changes
)

// event is something that will happen.
type event struct {
	at   float64 // seconds from the beginning
	who  int32
	kind kind
}

// agenda has the events to come, the next one first: a heap of four children to each parent, which for so small elements has fewer
// cache misses than one of two.
type agenda struct{ events []event }

func (a *agenda) add(e event) {
	a.events = append(a.events, e)
	i := len(a.events) - 1
	for i > 0 {
		parent := (i - 1) / 4
		if a.events[parent].at <= e.at {
			break
		}
		a.events[i] = a.events[parent]
		i = parent
	}
	a.events[i] = e
}

// next takes out the first event. There is always one.
func (a *agenda) next() event {
	first := a.events[0]
	last := len(a.events) - 1
	e := a.events[last]
	a.events = a.events[:last]
	if last > 0 {
		a.sink(e)
	}
	return first
}

// sink puts e in at the root.
func (a *agenda) sink(e event) {
	i := 0
	for {
		child := 4*i + 1
		if child >= len(a.events) {
			break
		}
		least := child
		for c := child + 1; c < min(child+4, len(a.events)); c++ {
			if a.events[c].at < a.events[least].at {
				least = c
			}
		}
		if e.at <= a.events[least].at {
			break
		}
		a.events[i] = a.events[least]
		i = least
	}
	a.events[i] = e
}
