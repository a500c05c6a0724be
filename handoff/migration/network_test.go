// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"fmt"
	"time"
)

// frame is a message between two processes of the model; the kinds are those of package wire.
type frame struct {
	kind       frameKind
	id         uint8
	epoch      uint32
	owner      Owner
	large      bool
	target     bool  // Recover's
	present    bool  // Located's
	granted    bool  // Handoff's
	generation uint8 // of the connection that ended, for frameLost
}

type frameKind uint8

// Frames between hosts, then between agent and application. frameLost is the end of a connection, as its reader sees it.
const (
	frameLost frameKind = iota + 1
	frameOffer
	frameAccept
	frameRefuse
	frameStateSent
	frameStateStored
	frameTransfer
	frameCommitted
	frameHeld
	frameCancel
	frameLease
	frameLeased
	frameLeaseRefused
	frameCommit
	frameAbort
	frameQuery
	frameOwner
	framePrepare
	framePrepared
	frameExport
	frameExported
	frameExportRefused
	frameResume
	frameMigrated
	frameImport
	frameImported
	frameImportRefused
	frameActivate
	frameWithdraw
	frameRecover
	// Of a handoff. Its Commit, Owner, Committed, Refuse and Cancel are those above.
	frameHandoff
	frameLocate
	frameLocated
	frameOver // a Refuse that says so
)

func (k frameKind) String() string {
	return [...]string{
		"?", "(connection lost)", "Offer", "Accept", "Refuse", "StateSent", "StateStored", "Transfer", "Committed", "Held", "Cancel",
		"Lease", "Leased", "LeaseRefused", "Commit", "Abort", "Query", "Owner", "Prepare", "Prepared", "Export", "Exported",
		"Refuse", "Resume", "Migrated", "Import", "Imported", "Refuse", "Activate", "Withdraw", "Recover",
		"Handoff", "Locate", "Located", "Refuse (over)",
	}[k]
}

func (f frame) String() string {
	s := fmt.Sprintf("%v#%d", f.kind, f.id)
	if f.kind == frameOwner {
		s += "(" + f.owner.String() + ")"
	}
	return s
}

// link is the pair of hosts lo and hi, and the connections between them: the one that stands, and what is still
// to be read from those that are over. A process that has written to a connection and died, or given it up, does not
// take back what it wrote: the other side may read it much later, even after frames of the next connection.
type link struct {
	lo, hi     node
	up         bool
	generation uint8
	// view is the connection that each side believes in, 0 when it knows of none.
	view    [2]uint8
	queue   [2][]frame // queue[0] is for hi, queue[1] for lo
	old     []ended
	healsAt time.Duration // no connection before
}

type ended struct {
	to         node
	generation uint8
	queue      []frame
}

// push appends without touching an array that another world shares.
func push[T any](q []T, v T) []T { return append(q[:len(q):len(q)], v) }

// without returns q without element i, in a new array.
func without[T any](q []T, i int) []T {
	return append(q[:i:i], q[i+1:]...)
}

func (l *link) connect() {
	l.generation++
	l.up, l.view = true, [2]uint8{l.generation, l.generation}
}

func (l *link) side(n node) int {
	if n == l.lo {
		return 0
	}
	return 1
}

// cut ends the connection. keep says, per direction, whether what is under way will still be read.
func (l *link) cut(keep [2]bool) {
	if !l.up {
		return
	}
	for dir, to := range []node{l.hi, l.lo} {
		var q []frame
		if keep[dir] {
			q = l.queue[dir]
		}
		l.old = push(l.old, ended{to: to, generation: l.generation, queue: push(q, frame{kind: frameLost, generation: l.generation})})
	}
	l.up, l.queue = false, [2][]frame{}
}

// forget drops what n, which has died, will never read.
func (l *link) forget(n node) {
	l.view[l.side(n)] = 0
	kept := l.old[:0:0]
	for _, o := range l.old {
		if o.to != n {
			kept = append(kept, o)
		}
	}
	l.old = kept
}

func (w *world) link(x, y node) *link {
	for i := range w.links {
		if l := &w.links[i]; l.lo == x && l.hi == y || l.lo == y && l.hi == x {
			return l
		}
	}
	panic("no such link")
}

// send puts f on connection generation g from one node to another. What goes to a connection that is over is lost.
func (w *world) send(from, to node, g uint8, f frame) {
	l := w.link(from, to)
	w.note("%v -> %v: %v", from, to, f)
	if l.up && g == l.generation {
		q := &l.queue[l.side(from)]
		*q = push(*q, f)
	}
}

// connectable reports whether x and y could connect now.
func (w *world) connectable(l *link) bool {
	return !l.up && w.now >= l.healsAt && w.known[l.lo] && w.known[l.hi]
}
