// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/realtime"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// procPath is where the kernel tells.
const procPath = "/proc"

// Run reports until ctx ends, and then that this host is gone, and closes the reporter. Call it once. The error is nil then, else the
// system's.
func (r *Reporter) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() {
		r.waking.Lock()
		defer r.waking.Unlock()
		r.kick()
	})
	defer stop()
	group.Go(func() error {
		priority, err := realtime.Enter()
		if err != nil {
			r.cfg.Logger.Warn("heartbeats will be late when this host is busy", "priority", priority.String(), "error", err)
		}
		return r.beats(ctx)
	})
	group.Go(func() error {
		r.vectors(ctx)
		return nil
	})
	return errors.Join(group.Wait(), r.Close())
}

// beats sends heartbeats at begin + k*d, and in between when the state changes.
func (r *Reporter) beats(ctx context.Context) error {
	seq := firstSeq()
	silent := false // sending fails; said once
	beat := func(now time.Time, flag vitals.Flag, stamp uint32) {
		seq++
		err := r.heartbeats.send(vitals.Heartbeat{Host: r.cfg.Host, Seq: seq, Flag: flag, Stamp: stamp}, now)
		if (err != nil) != silent {
			silent = err != nil
			r.cfg.Logger.Warn("sending heartbeats", "failing", silent, "error", err)
		}
	}
	due := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		flag, stamp := r.state.Load().heartbeat(now)
		beat(now, flag, stamp)
		if !now.Before(due) {
			due = r.next(due, now)
		}
		if err := r.wait(time.Until(due)); err != nil {
			return err
		}
	}
	now := time.Now()
	beat(now, vitals.PlannedFailure, vitals.StampOf(now))
	return nil
}

// next returns when the next regular heartbeat is due. A thread that was kept from running does not catch up: one heartbeat says all.
func (r *Reporter) next(due, now time.Time) time.Time {
	late := now.Sub(due)
	r.late.Store(max(r.late.Load(), int64(late)))
	missed := late / r.cfg.Interval
	r.skipped.Add(uint64(missed))
	return due.Add((missed + 1) * r.cfg.Interval)
}

// wait returns when the time is over, or the state has changed.
func (r *Reporter) wait(d time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(r.wake), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(max(d, 0)))
	n, err := unix.Ppoll(fds, &timeout, nil)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("ppoll", err)
	}
	if n > 0 {
		var b [8]byte
		_, _ = unix.Read(r.wake, b[:]) // it says only that there was something
	}
	return nil
}

// vectors sends load vectors until ctx ends.
func (r *Reporter) vectors(ctx context.Context) {
	k := openKernel(procPath)
	defer k.close()
	tick := time.NewTicker(r.cfg.LoadInterval)
	defer tick.Stop()
	seq := firstSeq()
	last, said := r.look(k, "")
	var count uint32
	var counted time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var now *reading
		now, said = r.look(k, said)
		if now.at.Sub(counted) >= countEvery {
			counted = now.at
			if n, err := k.connections(r.cfg.Services); err == nil { // else the last count; look says what is wrong with sock_diag
				count = n
			}
		}
		s := r.state.Load()
		v := vitals.Vector{Host: r.cfg.Host, Seq: seq, Interval: r.cfg.LoadInterval, Sessions: s.Sessions + count, Shares: shares(last, now, r.cfg.Services)}
		v.Shares[vitals.Application] = s.application()
		_ = r.loads.send(v, now.at) // counted; heartbeats say it
		last, seq = now, seq+1
	}
}

// look reads the kernel, and whether somebody listens where somebody must. What could not be read is said when it changes.
func (r *Reporter) look(k *kernel, said string) (*reading, string) {
	now, err := k.read()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != said {
		r.cfg.Logger.Info("parts of the load that cannot be told", "error", text)
	}
	if without := missing(now, r.cfg.Watch); now.listened {
		r.setDeserted(len(without) > 0)
	}
	return now, text
}
