// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// sweepInterval is how often the flow tables are looked through. What is forgotten is free after two to three of them.
const sweepInterval = time.Second

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL.
const membarrierGlobal = 1

// Run deletes idle and ended flows, follows changes of the interfaces' MAC addresses, and looks for shortcuts, until ctx is done. Packets
// are forwarded without it, but slots are never freed. It may be run again after it has returned.
func (f *Forwarder) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.tend(ctx) })
	if f.mode == TCX && !f.config.NoShortcut {
		group.Go(func() error {
			f.tendShortcuts(ctx)
			return nil
		})
	}
	return group.Wait()
}

func (f *Forwarder) tend(ctx context.Context) error {
	tick, expiry := time.NewTicker(sweepInterval), time.NewTicker(expiryInterval)
	defer tick.Stop()
	defer expiry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-expiry.C:
			if err := f.expire(); err != nil {
				return &OpError{Op: "run", Err: err}
			}
			continue
		case <-tick.C:
		}
		if err := f.sweep(); err != nil {
			return &OpError{Op: "run", Err: err}
		}
		f.withHandles(f.refresh)
	}
}

// sweep walks over both tables once.
func (f *Forwarder) sweep() error {
	// No packet that was under way during the last sweep is so any more: what that has marked as gone may be freed.
	// The command is synchronize_rcu() in the kernel, but is refused where CPUs are isolated (nohz_full); there the
	// interval must do.
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0)
	if errno != 0 && !errors.Is(errno, unix.EINVAL) && !errors.Is(errno, unix.ENOSYS) {
		return fmt.Errorf("membarrier: %w", errno)
	}
	for _, family := range []uint32{4, 6} {
		f.mu.Lock()
		last, known := f.swept[family]
		f.mu.Unlock()
		inserted, err := f.inserted(family)
		if err != nil {
			return err
		}
		if known && last.live+last.dying == 0 && last.inserted == inserted {
			continue // nothing there
		}
		c, err := f.table.sweep(family, timeouts{
			idle: ticks(f.config.IdleTimeout), closing: ticks(f.config.ClosingTimeout),
			handshake: ticks(handshakeTimeout(last.pressure())), datagram: ticks(f.config.DatagramTimeout),
		})
		if err != nil {
			return fmt.Errorf("sweep the flow table: %w", err)
		}
		c.inserted = inserted
		f.mu.Lock()
		f.swept[family] = c
		f.mu.Unlock()
	}
	return nil
}

func (f *Forwarder) inserted(family uint32) (uint64, error) {
	c, err := f.table.counters()
	if family == 4 {
		return c.Inserted4, err
	}
	return c.Inserted6, err
}

// refresh follows a change of an interface's MAC address.
func (f *Forwarder) refresh() {
	f.ports.Lock()
	defer f.ports.Unlock()
	for _, p := range f.points {
		l, err := f.nl.LinkByIndex(p.ifindex)
		if err != nil || len(l.Attrs().HardwareAddr) != 6 || bytes.Equal(l.Attrs().HardwareAddr, p.mac) {
			continue
		}
		p.mac = l.Attrs().HardwareAddr
		if err := f.register(p); err != nil {
			f.config.Logger.Error("MAC address changed", "interface", p.name, "error", err)
		}
	}
}
