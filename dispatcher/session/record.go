// SPDX-License-Identifier: Apache-2.0

package session

import "time"

// Times in records are nanoseconds since the table was made, timeouts are milliseconds: 32 bits of them are 49 days.

// flow is 64 bytes, a line of the CPU's cache, and the only one that Lookup reads from memory when there are a million flows; so a flow repeats
// what its session knows, and its place in the session's list is kept elsewhere (siblings).
type flow struct {
	from, to   address
	ends       // with from and to: the flow's tuple
	marks      marks
	media      uint8 // place in Table.media
	seen       int64
	timeout    uint32 // ms
	server     Server
	session    uint32
	generation uint32 // the session's
}

// marks are, from the lowest bit, an Identity (2), whether a packet has been seen since the flow was opened or announced (1), and the openings
// of the pattern that a secondary flow was announced by (2).
type marks uint8

const usedMark marks = 1 << 2

func (m marks) identity() Identity { return Identity(m & 3) }

func (m marks) used() bool { return m&usedMark != 0 }

func (m marks) origin() openings { return openings(m >> 3) }

// confirmed are the marks of an announced flow whose first packet has come.
func confirmed(origin openings) marks { return marks(Secondary) | usedMark | marks(origin)<<3 }

func (f *flow) tuple() tuple { return tuple{f.from, f.to, f.ends} }

func (f *flow) key() Key {
	t := f.tuple()
	return t.key()
}

func (f *flow) setTuple(t *tuple) { f.from, f.to, f.ends = t.from, t.to, t.ends }

func (f *flow) is(t *tuple) bool { return f.from == t.from && f.to == t.to && f.ends == t.ends }

func (f *flow) id() ID { return ID(f.generation)<<32 | ID(f.session) }

func (f *flow) silence() int64 { return int64(f.timeout) * int64(time.Millisecond) }

func (f *flow) inactive(at int64) bool { return at-f.seen >= f.silence() }

// expires is when the flow is overdue.
func (f *flow) expires() int64 { return f.seen + 2*f.silence() }

func (f *flow) overdue(at int64) bool { return at >= f.expires() }

func (f *flow) status(at int64) Status {
	switch {
	case f.inactive(at):
		return StatusInactive
	case f.marks.used():
		return StatusEstablished
	}
	return StatusNew
}

// dialog is a session; the exported Session is what others see of it.
type dialog struct {
	// until is the latest time at which one of its flows was or is overdue.
	until      int64
	generation uint32 // 0: the record is free
	server     Server
	client     uint32
	next, prev uint32    // of its client
	flows      uint32    // the list's head
	names      uint32    // the list's head
	patience   [2]uint32 // ms: timeouts of signalling and of media
	signalling uint16
	media      uint16
	named      uint16
	apart      bool
}

func (d *dialog) link() *uint32 { return &d.next }

// client is who opens sessions.
type client struct {
	address  address // see clientOf
	sessions uint32  // the list's head: the last one opened or moved
	flows    uint32
}

func (c *client) link() *uint32 { return &c.sessions }

// name is a text that finds a session, in a form of fixed width.
type name struct {
	sum     [32]byte // SHA-256: nobody can make two texts that have the same
	session uint32
	next    uint32 // of its session
}

func (n *name) link() *uint32 { return &n.next }

// timeout is for a flow of that identity, in milliseconds.
func (d *dialog) timeout(i Identity) uint32 {
	if i == Signalling {
		return d.patience[0]
	}
	return d.patience[1]
}

func (d *dialog) setTimeouts(t Timeouts) {
	d.patience = [2]uint32{uint32(t.Signalling.Milliseconds()), uint32(t.Media.Milliseconds())}
	d.apart = t.Apart
}

// empty reports whether the session is over.
func (d *dialog) empty() bool { return d.signalling+d.media == 0 }

func (d *dialog) timeouts() Timeouts {
	return Timeouts{
		Signalling: time.Duration(d.patience[0]) * time.Millisecond,
		Media:      time.Duration(d.patience[1]) * time.Millisecond,
		Apart:      d.apart,
	}
}
