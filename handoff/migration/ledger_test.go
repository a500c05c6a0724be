// SPDX-License-Identifier: Apache-2.0

package migration

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// ask is one request to a ledger.
type ask struct {
	at    time.Duration
	do    string // lease, commit, abort, end, sweep
	id    uint64
	from  string // of a lease; who asks, otherwise
	to    string
	epoch uint32
	owner Owner
	ttl   time.Duration
	want  error
}

func TestLedger(t *testing.T) {
	a1 := Owner{Host: "a", Epoch: 1}
	b2 := Owner{Host: "b", Epoch: 2}
	lease := func(id uint64, want error) ask {
		return ask{do: "lease", id: id, from: "a", to: "b", epoch: 1, owner: a1, ttl: 10 * time.Second, want: want}
	}
	at := func(d time.Duration, x ask) ask {
		x.at = d
		return x
	}
	commit := func(id uint64, host string, want error) ask { return ask{do: "commit", id: id, from: host, want: want} }
	abort := func(id uint64, host string) ask { return ask{do: "abort", id: id, from: host} }

	tests := []struct {
		name string
		asks []ask
	}{
		{"commit within the lease", []ask{lease(1, nil), at(9999*time.Millisecond, commit(1, "b", nil))}},
		{"commit without a lease", []ask{commit(1, "b", ErrNoLease)}},
		{"commit under another id", []ask{lease(1, nil), commit(2, "b", ErrNoLease)}},
		{"commit by another host", []ask{lease(1, nil), commit(1, "c", ErrNoLease), commit(1, "b", nil)}},
		{"commit by the source", []ask{lease(1, nil), commit(1, "a", ErrNoLease)}},
		{"commit after the end of time", []ask{lease(1, nil), at(10*time.Second, commit(1, "b", ErrNoLease))}},
		{"commit after the source's abort", []ask{lease(1, nil), abort(1, "a"), commit(1, "b", ErrNoLease)}},
		{"commit after the target's abort", []ask{lease(1, nil), abort(1, "b"), commit(1, "b", ErrNoLease)}},
		{"a stranger's abort does nothing", []ask{lease(1, nil), abort(1, "c"), commit(1, "b", nil)}},
		{"a former move's abort does nothing", []ask{lease(1, nil), abort(1, "a"), lease(2, nil), abort(1, "a"), commit(2, "b", nil)}},
		{"commit twice under one lease", []ask{lease(1, nil), commit(1, "b", nil), {do: "end", id: 1}, commit(1, "b", ErrNoLease)}},

		{"two moves at a time", []ask{lease(1, nil), lease(2, ErrLeased)}},
		{"one after the other", []ask{lease(1, nil), abort(1, "a"), lease(2, nil), commit(2, "b", nil)}},
		{"one after the end of the other's time", []ask{lease(1, nil), at(10*time.Second, lease(2, nil)), at(10*time.Second, commit(1, "b", ErrNoLease))}},
		{"not the owner", []ask{{do: "lease", id: 1, from: "b", to: "c", epoch: 1, owner: a1, ttl: time.Second, want: ErrNotOwner}}},
		{"not the owner any more", []ask{{do: "lease", id: 1, from: "a", to: "b", epoch: 1, owner: b2, ttl: time.Second, want: ErrNotOwner}}},
		{"wrong epoch", []ask{{do: "lease", id: 1, from: "a", to: "b", epoch: 2, owner: a1, ttl: time.Second, want: ErrNotOwner}}},
		{"unknown flow", []ask{{do: "lease", id: 1, from: "a", to: "b", epoch: 1, owner: Owner{Host: "a", Epoch: 1, Unknown: true}, ttl: time.Second, want: ErrNotOwner}}},
		{"no time", []ask{{do: "lease", id: 1, from: "a", to: "b", epoch: 1, owner: a1, want: ErrNoLease}}},
		{"too much time", []ask{{do: "lease", id: 1, from: "a", to: "b", epoch: 1, owner: a1, ttl: MaxLease + 1, want: ErrNoLease}}},

		{"a doubled lease", []ask{lease(1, nil), lease(1, nil), commit(1, "b", nil)}},
		{"a doubled lease gives no more time", []ask{lease(1, nil), at(9*time.Second, lease(1, nil)), at(10*time.Second, commit(1, "b", ErrNoLease))}},
		{"a doubled lease after its time", []ask{lease(1, nil), at(10*time.Second, lease(1, ErrNoLease)), at(11*time.Second, commit(1, "b", ErrNoLease))}},
		{"a doubled lease after its time and a sweep", []ask{lease(1, nil), {at: 10 * time.Second, do: "sweep"}, at(10*time.Second, lease(1, ErrNoLease))}},
		{"a doubled lease after its commit", []ask{lease(1, nil), {do: "end", id: 1}, {do: "lease", id: 1, from: "b", to: "a", epoch: 2, owner: b2, ttl: time.Second, want: ErrNoLease}}},
		{"a lease that comes after its abort", []ask{abort(1, "a"), lease(1, ErrNoLease), commit(1, "b", ErrNoLease)}},
		{"long after its abort", []ask{abort(1, "a"), at(MaxLease-1, lease(1, ErrNoLease))}},
		{"a doubled lease after the next move's", []ask{lease(1, nil), abort(1, "a"), lease(2, nil), lease(1, ErrNoLease), commit(2, "b", nil)}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			l := &Ledger{}
			for i, x := range tc.asks {
				now := origin.Add(x.at)
				var err error
				switch x.do {
				case "lease":
					err = l.Lease(now, LeaseRequest{ID: x.id, Flow: flowUnderTest, Epoch: x.epoch, From: x.from, To: x.to, TTL: x.ttl}, x.owner)
				case "commit":
					var epoch uint32
					if epoch, err = l.Commit(now, x.id, flowUnderTest, x.from); err == nil && epoch != 1 {
						t.Errorf("%d: commit from epoch %d, want 1", i, epoch)
					}
				case "abort":
					l.Abort(now, x.id, flowUnderTest, x.from)
				case "end":
					l.End(now, x.id, flowUnderTest)
				case "sweep":
					l.Sweep(now)
				}
				if !errors.Is(err, x.want) {
					t.Errorf("%d: %s %d: %v, want %v", i, x.do, x.id, err, x.want)
				}
			}
		})
	}
}

// TestLedgerForgets checks that a ledger's size follows what goes on now, not what ever went on.
func TestLedgerForgets(t *testing.T) {
	l := &Ledger{}
	now := origin
	const rounds, moves = 30, 100
	id := uint64(0)
	for range rounds {
		now = now.Add(time.Minute)
		for i := range moves {
			id++
			f := tcprepair.NewFlow(flowUnderTest.Local, netip.AddrPortFrom(flowUnderTest.Remote.Addr(), uint16(1+i)))
			err := l.Lease(now, LeaseRequest{ID: id, Flow: f, Epoch: 1, From: "a", To: "b", TTL: 10 * time.Second}, Owner{Host: "a", Epoch: 1})
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				l.End(now, id, f) // the other half is left to Sweep
			}
		}
		if got := l.Len(); got != moves/2 {
			t.Fatalf("%d leases stand, want %d", got, moves/2)
		}
		l.Sweep(now.Add(10 * time.Second))
		if got := l.Len(); got != 0 {
			t.Fatalf("%d leases stand after the sweep, want 0", got)
		}
	}
	// Ids are kept for MaxLease, which is ten rounds; the eleventh is the present one.
	if bound := moves * (int(MaxLease/time.Minute) + 1); len(l.ended) > bound || l.order.Len() != len(l.ended) {
		t.Errorf("%d ended ids are kept, %d in order, want at most %d and as many", len(l.ended), l.order.Len(), bound)
	}
	l.Sweep(now.Add(2 * MaxLease))
	if len(l.ended) != 0 || l.order.Len() != 0 {
		t.Errorf("%d ended ids are kept for ever", len(l.ended))
	}
}
