// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
)

// keysSlack is by how much the queue of keys is longer than its table: it has room for marks, and for entries that the kernel's count of a
// full table has missed.
const keysSlack = 4096

// sweep deletes what has been idle, expired or forgotten; each takes two sweeps.
func (g *Gate) sweep() error {
	s, err := g.table.sweep(g.config.IdleTimeout, handshakeTimeout)
	if err != nil {
		return fmt.Errorf("sweep the flow table: %w", err)
	}
	g.mu.Lock()
	g.swept = s
	g.mu.Unlock()
	return nil
}

// sweep looks once at every entry that is there now. It does so in many short runs, between which others use the processor and the table:
// nothing can interrupt a run in the kernel.
func (t *table) sweep(idle, handshake time.Duration) (gateSweep, error) {
	s := gateSweep{Idle: uint64(idle), Handshake: uint64(handshake), Mark: rand.Uint64()}
	for s.Begun == 0 || s.Left != 0 {
		if err := t.sweepSome(&s); err != nil {
			return s, err
		}
		runtime.Gosched()
	}
	return s, nil
}

// sweepSome runs a few steps of a sweep.
func (t *table) sweepSome(s *gateSweep) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	// The kernel copies the context back: the same program run serves as question and answer.
	_, err := t.objects.RehomeSweep.Run(&ebpf.RunOptions{Context: *s, ContextOut: s})
	return err
}

// enlist queues the keys of all entries, once, of tables that a version without queues has pinned.
func (t *table) enlist() error {
	if _, err := t.objects.RehomeEnlist.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("queue the entries of pinned tables: %w", err)
	}
	return nil
}
