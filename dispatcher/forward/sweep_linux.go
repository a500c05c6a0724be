// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"time"

	"github.com/cilium/ebpf"
)

// sweepLines is how many lines one call looks through: some hundred microseconds, in which no operation can run.
const sweepLines = 4096

// timeouts are after how long without a packet a flow goes, in the table's ticks.
type timeouts struct {
	idle, closing, handshake, datagram uint32
}

func ticks(d time.Duration) uint32 { return uint32(max(1, d/tick)) }

// handshakeTimeout is how long a SYN is remembered that nothing came after: as long as its client repeats it
// (tcp_syn_retries 6: 127 s) while there is room, and down to a second repetition when three quarters are taken, so that
// a flood of SYNs leaves by itself.
func handshakeTimeout(pressure float64) time.Duration {
	const (
		most, least = 130 * time.Second, 4 * time.Second
		from, to    = 0.4, 0.75
	)
	share := min(1, max(0, (pressure-from)/(to-from)))
	return most - time.Duration(share*float64(most-least))
}

// census is what one walk over a table found.
type census struct {
	live, fresh, dying, freed uint64
	slots                     uint64
	inserted                  uint64 // before the walk, since the table was made
}

func (c census) pressure() float64 {
	if c.slots == 0 {
		return 0 // not swept yet
	}
	return float64(c.live+c.dying) / float64(c.slots)
}

// sweep walks over the table of one IP version once: what has been idle dies, what is dead is freed in two sweeps more.
func (t *table) sweep(family uint32, limits timeouts) (census, error) {
	lines := t.objects.Lines4.MaxEntries()
	if family == 6 {
		lines = t.objects.Lines6.MaxEntries()
	}
	sum := census{slots: uint64(lines) * lineSlots}
	for at := uint32(0); at < lines; at += sweepLines {
		s := forwardSweep{
			Family: family, Line: at, Lines: min(sweepLines, lines-at),
			Idle: limits.idle, Closing: limits.closing, Handshake: limits.handshake, Datagram: limits.datagram,
		}
		if err := t.sweepSome(&s); err != nil {
			return sum, err
		}
		sum.live += uint64(s.Live)
		sum.fresh += uint64(s.Fresh)
		sum.dying += uint64(s.Dying)
		sum.freed += uint64(s.Freed)
	}
	return sum, nil
}

// settleAll switches the path of all flows that a process before this one has granted and not settled.
func (t *table) settleAll() error {
	for _, of := range []struct {
		family uint32
		lines  *ebpf.Map
	}{{4, t.objects.Lines4}, {6, t.objects.Lines6}} {
		const never = 1 << 30
		lines := of.lines.MaxEntries()
		for at := uint32(0); at < lines; at += sweepLines {
			s := forwardSweep{
				Family: of.family, Line: at, Lines: min(sweepLines, lines-at), Idle: never, Closing: never, Handshake: never, Datagram: never, Settle: 1,
			}
			if err := t.sweepSome(&s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *table) sweepSome(s *forwardSweep) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	// The kernel copies the context back: the same program run serves as question and answer.
	_, err := t.objects.RehomeSweep.Run(&ebpf.RunOptions{Context: *s, ContextOut: s})
	return err
}
