// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/realtime"
	"github.com/rehome-net/rehome/handoff/vitals"
)

// publishEvery is how old numbers may be that others see. States, and loads, are never old.
const publishEvery = 100 * time.Millisecond

// Run receives and judges until ctx ends; call it once. The error is nil then, else the system's.
func (m *Monitor) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, m.kick)()
	failed := make(chan error)
	go func() {
		priority, err := realtime.Enter()
		if err != nil {
			m.cfg.Logger.Warn("failures will be noticed later when this host is busy", "priority", priority.String(), "error", err)
		}
		failed <- m.loop(ctx)
	}()
	return <-failed
}

func (m *Monitor) loop(ctx context.Context) error {
	interval := m.detector.Config().Interval
	before := time.Now() // the last time that this thread is known to have run
	for ctx.Err() == nil {
		m.takeOrders()
		if m.dirty || before.Sub(m.published) >= publishEvery {
			m.publish(before)
		}
		// At least once in an interval it must be seen to run.
		wait := min(interval, publishEvery)
		now := time.Now()
		for _, next := range []time.Time{m.detector.Deadline(), m.manager.Deadline()} {
			if !next.IsZero() {
				wait = min(wait, next.Sub(now))
			}
		}
		wait = max(wait, 0)
		if err := m.poll(wait); err != nil {
			return err
		}
		now = time.Now()
		if err := m.drain(before, now); err != nil {
			return err
		}
		m.excuse(before.Add(wait), now, interval/2)
		before = now
		m.tell(m.detector.Tick(now), m.manager.Tick(now))
	}
	return nil
}

// excuse tells the engines when this thread has not run although it was due. As long as anything arrived the machine did run, and its
// network with it: then silence is silence.
func (m *Monitor) excuse(due, now time.Time, most time.Duration) {
	if m.heard.After(due) {
		due = m.heard
	}
	if now.Sub(due) <= most {
		return
	}
	m.count.Blind++
	m.count.BlindTime += now.Sub(due)
	m.detector.Blind(due, now)
	m.manager.Blind(due, now)
}

// poll waits until something arrives, somebody kicks, or the time is over.
func (m *Monitor) poll(wait time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(m.socket.fd), Events: unix.POLLIN}, {Fd: int32(m.wake), Events: unix.POLLIN}}
	timeout := unix.NsecToTimespec(int64(wait))
	if _, err := unix.Ppoll(fds, &timeout, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("ppoll", err)
	}
	return nil
}

// drain reads what had arrived by now; last is the time of the last such look.
func (m *Monitor) drain(last, now time.Time) error {
	for {
		b, stamp, ok, err := m.socket.read()
		if err != nil {
			return fmt.Errorf("monitor: %w", err)
		}
		if !ok {
			return nil
		}
		at := arrival(stamp, last, now)
		m.count.Late = max(m.count.Late, now.Sub(at))
		m.take(b, at)
		if stamp.After(now) {
			return nil // it came while we read: a flood must not keep us from looking at the clock
		}
	}
}

// arrival is the kernel's time of arrival by the monotonic clock, which does not jump when somebody sets the time. It cannot be outside of the
// time since the last look.
func arrival(stamp, last, now time.Time) time.Time {
	if stamp.IsZero() {
		return now
	}
	age := now.Round(0).Sub(stamp) // by the wall clock, as the stamp
	at := now.Add(-max(age, 0))
	if at.Before(last) {
		return last
	}
	return at
}

// take looks at one datagram.
func (m *Monitor) take(b []byte, at time.Time) {
	d, err := m.opener.Open(b, at)
	if err == nil && at.After(m.heard) {
		m.heard = at
	}
	switch {
	case err != nil:
		m.count.Refused[vitals.Reason(err)]++
	case d.Heartbeat != nil:
		m.count.Heartbeats++
		m.tell(m.detector.Beat(availability.Beat{Heartbeat: *d.Heartbeat, At: at, Sent: d.Sent}), nil)
	case d.Vector != nil:
		m.count.Vectors++
		m.tell(nil, m.manager.Report(at, *d.Vector))
		m.dirty = true
		if s, ok := m.manager.Sample(d.Vector.Host); ok && s.At.Equal(at) {
			m.cfg.Reported(d.Vector.Host, s)
		}
	}
}

func (m *Monitor) tell(changes []availability.Event, loads []load.Event) {
	if len(changes)+len(loads) == 0 {
		return
	}
	m.publish(time.Now()) // who is told may look
	for _, e := range changes {
		m.cfg.Changed(e)
	}
	for _, e := range loads {
		m.cfg.LoadChanged(e)
	}
}

// takeOrders does what other goroutines have asked for. It does not wait for one that has the lock, which may have less priority: with the next pass
// is soon enough.
func (m *Monitor) takeOrders() {
	var b [8]byte
	_, _ = unix.Read(m.wake, b[:]) // empty when nobody has kicked
	if !m.mu.TryLock() {
		return
	}
	orders := m.orders
	m.orders = nil
	m.mu.Unlock()
	for _, f := range orders {
		f()
		m.dirty = true
	}
}

func (m *Monitor) setHosts(want map[uint32]bool) {
	for _, id := range m.detector.Hosts() {
		if !want[id] {
			m.detector.Remove(id)
			m.manager.Remove(id)
		}
	}
	now := time.Now()
	for id := range want {
		m.detector.Add(now, id)
		m.manager.Add(now, id)
	}
}

// publish lets others see what is known.
func (m *Monitor) publish(now time.Time) {
	m.dirty, m.published = false, now
	hosts := make(map[uint32]Host)
	for _, id := range m.detector.Hosts() {
		var h Host
		h.Status, _ = m.detector.Status(id)
		h.Sample, h.LoadKnown = m.manager.Sample(id)
		hosts[id] = h
	}
	m.hosts.Store(&hosts)
	m.count.Strangers, m.count.Dropped = m.detector.Strangers(), uint64(m.socket.drops)
	stats := m.count
	if stats.Refused = m.stats.Load().Refused; stats.Refused == nil || !maps.Equal(stats.Refused, m.count.Refused) {
		stats.Refused = maps.Clone(m.count.Refused)
	}
	m.stats.Store(&stats)
}
