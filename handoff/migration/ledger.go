// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"container/list"
	"errors"
	"fmt"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// Refusals of a Ledger.
var (
	// ErrLeased means that another migration of the flow is under way.
	ErrLeased = errors.New("the flow is being moved already")
	// ErrNotOwner means that the asking host does not own the flow, or not at this epoch.
	ErrNotOwner = errors.New("the flow is not the asking host's")
	// ErrNoLease means that no lease of this id stands: it was aborted, has ended, or was never granted.
	ErrNoLease = errors.New("no such lease")
)

// Ledger keeps the leases of an entry: which flow may change hands, from whom, to whom, until when. Who owns a flow
// stands elsewhere, in the packet path itself, and is passed in. The zero value is an empty ledger.
//
// A lease ends by commit, by abort or by time, and its id never comes back: a Lease frame that arrives after its
// own Abort is refused. Ids are remembered for MaxLease after their end.
type Ledger struct {
	leases map[tcprepair.Flow]*lease
	ended  map[uint64]struct{}
	order  list.List // of endedID, oldest first
}

type lease struct {
	id       uint64
	from, to string
	epoch    uint32
	until    time.Time
}

type endedID struct {
	id    uint64
	until time.Time
}

// MaxLease bounds what a source may ask for.
const MaxLease = 10 * time.Minute

// LeaseRequest is what a source asks for.
type LeaseRequest struct {
	ID       uint64
	Flow     tcprepair.Flow
	Epoch    uint32
	From, To string
	TTL      time.Duration
}

// Lease grants r or says why not. owner is who owns the flow now.
func (l *Ledger) Lease(now time.Time, r LeaseRequest, owner Owner) error {
	l.expire(now)
	old, standing := l.leases[r.Flow]
	if standing && !now.Before(old.until) {
		l.End(now, old.id, r.Flow)
		standing = false
	}
	if _, dead := l.ended[r.ID]; dead {
		return fmt.Errorf("%w: it has ended", ErrNoLease)
	}
	if owner.Unknown || owner.Host != r.From || owner.Epoch != r.Epoch {
		return fmt.Errorf("%w: the entry has %v, asked was for %s/%d", ErrNotOwner, owner, r.From, r.Epoch)
	}
	if standing && old.id != r.ID {
		return fmt.Errorf("%w: to %s", ErrLeased, old.to)
	}
	if standing {
		// A doubled frame. Its own time must not count: the source's gate holds for the first one's.
		return nil
	}
	if r.TTL <= 0 || r.TTL > MaxLease {
		return fmt.Errorf("%w: asked for %v, want up to %v", ErrNoLease, r.TTL, MaxLease)
	}
	if l.leases == nil {
		l.leases = make(map[tcprepair.Flow]*lease)
	}
	l.leases[r.Flow] = &lease{id: r.ID, from: r.From, to: r.To, epoch: r.Epoch, until: now.Add(r.TTL)}
	return nil
}

// Commit reports whether host may become the owner of flow under the lease id; the caller then sets owner and epoch
// in the packet path with a compare-and-set from the returned epoch, and calls End.
func (l *Ledger) Commit(now time.Time, id uint64, flow tcprepair.Flow, host string) (epoch uint32, err error) {
	g, ok := l.leases[flow]
	switch {
	case !ok || g.id != id || !now.Before(g.until):
		return 0, ErrNoLease
	case g.to != host:
		return 0, fmt.Errorf("%w: the lease is for %s", ErrNoLease, g.to)
	}
	return g.epoch, nil
}

// Abort ends the lease id of flow for host, its source or (RecoverTarget) its target. It is no error if there is none.
func (l *Ledger) Abort(now time.Time, id uint64, flow tcprepair.Flow, host string) {
	if g, ok := l.leases[flow]; ok && g.id == id && g.from != host && g.to != host {
		return
	}
	l.End(now, id, flow)
}

// End forgets the lease id for good.
func (l *Ledger) End(now time.Time, id uint64, flow tcprepair.Flow) {
	if g, ok := l.leases[flow]; ok && g.id == id {
		delete(l.leases, flow)
	}
	if _, ok := l.ended[id]; ok {
		return
	}
	if l.ended == nil {
		l.ended = make(map[uint64]struct{})
	}
	l.ended[id] = struct{}{}
	l.order.PushBack(endedID{id: id, until: now.Add(MaxLease)})
	l.expire(now)
}

// Len returns the number of leases that have not been ended.
func (l *Ledger) Len() int { return len(l.leases) }

// Sweep drops the leases whose time is over. It is for the entry's own memory: an ended lease is refused anyhow.
func (l *Ledger) Sweep(now time.Time) {
	for flow, g := range l.leases {
		if !now.Before(g.until) {
			l.End(now, g.id, flow)
		}
	}
	l.expire(now)
}

// expire forgets old ids.
func (l *Ledger) expire(now time.Time) {
	for e := l.order.Front(); e != nil; e = l.order.Front() {
		old, ok := e.Value.(endedID)
		if ok && now.Before(old.until) {
			return
		}
		delete(l.ended, old.id)
		l.order.Remove(e)
	}
}
