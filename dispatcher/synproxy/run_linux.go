// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
)

// clockTime is how often the kernel's clock is compared with the wall's.
const clockTime = 10 * time.Second

// Run shows requests to Config.Decide and carries out the decisions, until ctx ends. It can be called once.
func (p *Proxy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return p.closeRing()
	})
	group.Go(func() error { return p.keepClock(ctx) })
	group.Go(func() error {
		defer cancel()
		return p.read()
	})
	return group.Wait()
}

func (p *Proxy) keepClock(ctx context.Context) error {
	tick := time.NewTicker(clockTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		p.mu.Lock()
		err := p.maps.Install(p.config.Parameters, p.config.announcement())
		p.mu.Unlock()
		if err != nil {
			return wrap("keep the clock", err)
		}
	}
}

// read is the goroutine that reads the ring.
func (p *Proxy) read() error {
	// On a thread of its own it is woken without the scheduler's help.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var record ringbuf.Record
	next := time.Now()
	for {
		err := p.reader.ReadInto(&record)
		now := time.Now()
		switch {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return wrap("read packets", err)
		default:
			if soon := now.Add(p.config.Patience / 10); p.receive(record.RawSample, now, p.ringIsEmpty()) && next.After(soon) {
				next = soon
				p.reader.SetDeadline(next)
			}
		}
		if now.Before(next) {
			continue
		}
		next = now.Add(p.sweep(now))
		p.reader.SetDeadline(next)
	}
}

// ringIsEmpty reports whether there is nothing to read now. Reader guards its other methods against Close, but not that one.
func (p *Proxy) ringIsEmpty() bool {
	p.ring.Lock()
	defer p.ring.Unlock()
	return p.ringClosed || p.reader.AvailableBytes() == 0
}

// closeRing interrupts read.
func (p *Proxy) closeRing() error {
	p.ring.Lock()
	defer p.ring.Unlock()
	p.ringClosed = true
	return p.reader.Close()
}
