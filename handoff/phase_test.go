// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"errors"
	"net"
	"testing"
)

// TestPhase holds the drawing of phase: every pair that is not listed changes nothing.
func TestPhase(t *testing.T) {
	type step struct {
		from phase
		on   event
	}
	want := map[step]phase{
		{importing, eventActivate}: serving,
		{importing, eventWithdraw}: closed,
		{importing, eventClose}:    closed,
		{importing, eventAbandon}:  abandoned,
		{serving, eventPause}:      exporting,
		{serving, eventClose}:      closed,
		{exporting, eventResume}:   serving,
		{exporting, eventExported}: exported,
		{exporting, eventClose}:    closed,
		{exported, eventResume}:    serving,
		{exported, eventMigrated}:  migrated,
		{exported, eventClose}:     closing,
		{exported, eventAbandon}:   abandoned,
		{closing, eventResume}:     closed,
		{closing, eventMigrated}:   migrated,
		{closing, eventAbandon}:    abandoned,
	}
	for p := importing; p <= abandoned; p++ {
		for e := eventPause; e <= eventClose; e++ {
			next, moves := want[step{p, e}]
			if !moves {
				next = p
			}
			got, ok := p.next(e)
			if got != next || ok != moves {
				t.Errorf("phase %d on event %d: %d, %t; want %d, %t", p, e, got, ok, next, moves)
			}
		}
	}
}

// TestPhaseOfCalls: a call passes in serving, waits while the move is open, and fails by the right error else.
func TestPhaseOfCalls(t *testing.T) {
	tests := map[phase]struct {
		parks bool
		err   error
	}{
		importing: {false, ErrNotActive},
		serving:   {false, nil},
		exporting: {true, nil},
		exported:  {true, nil},
		closing:   {false, net.ErrClosed},
		migrated:  {false, ErrMigrated},
		closed:    {false, net.ErrClosed},
		abandoned: {false, ErrAbandoned},
	}
	for p := importing; p <= abandoned; p++ {
		want, ok := tests[p]
		if !ok {
			t.Errorf("phase %d is not in this test", p)
		}
		if got := p.parks(); got != want.parks {
			t.Errorf("phase %d: parks %t, want %t", p, got, want.parks)
		}
		if got := p.err(); !errors.Is(got, want.err) {
			t.Errorf("phase %d: error %v, want %v", p, got, want.err)
		}
	}
}
