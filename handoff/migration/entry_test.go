// SPDX-License-Identifier: Apache-2.0

package migration

import "time"

// toEntry sends f to the entry, now or as soon as a connection stands.
func (w *world) toEntry(h node, f frame) {
	l := w.link(h, entryE)
	if g := l.view[l.side(h)]; g != 0 {
		w.send(h, entryE, g, f)
		return
	}
	w.note("%v: %v waits for a connection", h, f)
	w.hosts[h].waiting = push(w.hosts[h].waiting, f)
}

func (w *world) entryLost(h node) {
	x := &w.hosts[h]
	if x.hasSource {
		w.sourceStep(h, Event{Kind: EntryLost})
	}
	if x.hasTarget && !w.crashed {
		w.targetStep(h, Event{Kind: EntryLost})
	}
}

// entryReceives is the entry's end of its connections; the owner table is asked and changed in one step with the ledger.
func (w *world) entryReceives(from node, g uint8, f frame) {
	now := w.clock(entryE)
	e := &w.entry
	answer := func(x frame) {
		if w.dies(entryE) {
			return
		}
		x.id = f.id
		w.send(entryE, from, g, x)
	}
	switch f.kind {
	case frameLease:
		if w.dies(entryE) {
			return
		}
		kind := frameLeased
		w.withLedger(func(l *Ledger) {
			if w.rules.renewLease {
				if old, ok := l.leases[flowUnderTest]; ok && old.id == uint64(f.id) {
					old.until = now.Add(w.cfg.Limit)
				}
			}
			err := l.Lease(now, LeaseRequest{
				ID: uint64(f.id), Flow: flowUnderTest, Epoch: f.epoch, From: from.String(), To: from.other().String(), TTL: w.cfg.Limit,
			}, e.owner)
			if err != nil {
				kind = frameLeaseRefused
			}
		})
		answer(frame{kind: kind})
	case frameCommit:
		w.commit(now, from, f, answer)
	case frameAbort:
		if w.dies(entryE) {
			return
		}
		w.withLedger(func(l *Ledger) {
			l.Abort(now, uint64(f.id), flowUnderTest, from.String())
			if w.rules.forgetAborted {
				l.ended = nil
				l.order.Init()
			}
		})
		answer(frame{kind: frameOwner, owner: e.owner})
	case frameQuery:
		answer(frame{kind: frameOwner, owner: e.owner})
	}
}

func (w *world) commit(now time.Time, from node, f frame, answer func(frame)) {
	e := &w.entry
	if w.dies(entryE) {
		return
	}
	epoch, err := e.ledger.Commit(now, uint64(f.id), flowUnderTest, from.String())
	if w.rules.commitWithoutLease {
		epoch, err = f.epoch, nil
	}
	if err == nil && epoch == f.epoch {
		w.changeOwner(epoch, from)
		if w.dies(entryE) {
			return
		}
		w.withLedger(func(l *Ledger) { l.End(now, uint64(f.id), flowUnderTest) })
	}
	answer(frame{kind: frameOwner, owner: e.owner})
}
