// SPDX-License-Identifier: Apache-2.0

package availability

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// Beat is a heartbeat that has been found genuine.
type Beat struct {
	vitals.Heartbeat
	// At is when it arrived at this host, as the kernel tells.
	At time.Time
	// Sent is when it was sent, by the sender's clock.
	Sent time.Time
}

// Detector is the manager's side of SARA's availability engine (figure 7). It is for one goroutine.
type Detector struct {
	cfg   Config
	hosts map[uint32]*host
	// strangers counts heartbeats of hosts that were not added.
	strangers uint64
}

// New returns a detector of no hosts, or an error that says what is wrong with the configuration.
func New(config Config) (*Detector, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	return &Detector{cfg: config, hosts: make(map[uint32]*host)}, nil
}

// Config returns the configuration, defaults filled in.
func (d *Detector) Config() Config { return d.cfg }

// Add makes a host known. It is Unknown until its first heartbeat, and Down when none has come for n·d. A host that is known stays as it
// is.
func (d *Detector) Add(now time.Time, id uint32) {
	if d.hosts[id] == nil {
		d.hosts[id] = &host{Status: Status{Since: now}, deadline: now.Add(d.cfg.silence())}
	}
}

// Remove forgets a host.
func (d *Detector) Remove(id uint32) { delete(d.hosts, id) }

// Hosts returns the hosts that are known, in the order of their numbers.
func (d *Detector) Hosts() []uint32 { return slices.Sorted(maps.Keys(d.hosts)) }

// Status tells of a host; ok is false when it is not known.
func (d *Detector) Status(id uint32) (s Status, ok bool) {
	h := d.hosts[id]
	if h == nil {
		return Status{}, false
	}
	return h.Status, true
}

// Strangers counts the heartbeats of hosts that are not known.
func (d *Detector) Strangers() uint64 { return d.strangers }

// Beat takes a heartbeat and returns what it changes: at most one event. One that was overtaken by a later one is counted, and changes
// nothing.
func (d *Detector) Beat(b Beat) []Event {
	h := d.hosts[b.Host]
	if h == nil {
		d.strangers++
		return nil
	}
	if !h.count(&b, d.cfg.Interval) {
		return nil
	}
	if b.At.After(h.deadline) {
		h.run = 0 // not in a row
	}
	h.Heard = b.At
	h.deadline = b.At.Add(d.cfg.silence())
	to, cause := h.wanted(&b)
	switch {
	case to == Down:
		h.run = 0
	case h.State == Down:
		h.run++
		if h.run < d.cfg.Rise {
			return nil
		}
	}
	return d.enter(nil, b.Host, to, b.At, cause)
}

// Tick returns what the time has changed: hosts whose silence has lasted n·d, or whose announced time has come. Heartbeats that arrived before now
// must have been passed to Beat.
func (d *Detector) Tick(now time.Time) []Event {
	var events []Event
	for id, h := range d.hosts {
		switch {
		case h.State == Down:
		case h.State == Draining && !now.Before(h.FailsAt):
			events = d.enter(events, id, Down, h.FailsAt, "the announced time has come")
		case !now.Before(h.deadline):
			events = d.enter(events, id, Down, h.deadline, silence)
		}
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Host, b.Host)) })
	return events
}

// Blind says that the caller was not running for some time, because its processor was taken away. What has arrived since must have been
// passed to Beat. Who was not heard meanwhile has one interval from now, if that is less than the time that was lost: a sender
// that stood still as well, on the same machine, is overdue, and sends as soon as it runs.
func (d *Detector) Blind(from, to time.Time) {
	for _, h := range d.hosts {
		since := from
		if h.Heard.After(from) {
			since = h.Heard
		}
		last := to.Add(d.cfg.Interval)
		if until := h.deadline.Add(to.Sub(since)); until.Before(last) {
			last = until
		}
		if last.After(h.deadline) {
			h.deadline = last
		}
	}
}

// Deadline returns when Tick will next have something to say, if nothing arrives; zero for never.
func (d *Detector) Deadline() (next time.Time) {
	for _, h := range d.hosts {
		if h.State == Down {
			continue
		}
		at := h.deadline
		if h.State == Draining && h.FailsAt.Before(at) {
			at = h.FailsAt
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// enter changes a host's state.
func (d *Detector) enter(events []Event, id uint32, to State, at time.Time, cause string) []Event {
	h := d.hosts[id]
	if h.State == to {
		return events
	}
	e := Event{Host: id, From: h.State, To: to, At: at, Cause: cause}
	if to == Draining {
		e.FailsAt = h.FailsAt
	}
	h.run = 0
	h.State, h.Since = to, at
	return append(events, e)
}
