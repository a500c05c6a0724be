// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// queued is what waits in a connection's queues while it is measured.
type queued struct {
	name              string
	received, unacked int
}

func benchQueues() []queued {
	return []queued{
		{name: "empty"},
		{name: "64KiB", received: 64 << 10},
		{name: "64KiB-unacked", unacked: 64 << 10},
	}
}

// bench moves one connection from its host to the same host again and again, as a drain would over a network card: what the
// servers send goes into a device that nobody empties, and the client does not answer. With ahead set, outline and reservation
// are made before the freeze, as a migration does. freeze and thaw are told how long each half took.
func bench(b *testing.B, q queued, ahead bool, freeze, thaw func(time.Duration)) {
	w, p := benchPair(b, q)
	var outline *Outline
	var err error
	if outline, err = ReadOutline(p.server); err != nil {
		b.Fatal(err)
	}
	w.a.do(func() {
		for b.Loop() {
			start := time.Now()
			var s *Snapshot
			if ahead {
				s, err = outline.FreezeTake(p.server, Limits{}, 0)
			} else if err = Freeze(p.server); err == nil {
				s, err = Take(p.server, Limits{})
			}
			if err != nil {
				return
			}
			freeze(time.Since(start))
			if err = Discard(p.server); err != nil {
				return
			}
			_ = unix.Close(p.server)
			p.server = -1
			var v *Reservation
			if v, err = Reserve(outline, RestoreConfig{}); err != nil {
				return
			}
			var r *Restored
			if !ahead {
				v.Close()
			}
			start = time.Now()
			if ahead {
				r, err = v.Restore(s)
			} else {
				r, err = Restore(s, RestoreConfig{})
			}
			if err != nil {
				return
			}
			if err = r.Thaw(); err != nil {
				return
			}
			thaw(time.Since(start))
			p.server = r.Disown()
		}
	})
	if err != nil {
		b.Fatal(err)
	}
}

// benchPair makes the connection.
func benchPair(b *testing.B, q queued) (*wire, *pair) {
	w := newWire(b)
	p := w.connect(b, v4, func(listener, _ int) {
		// A window and a congestion window that take it all at once. Without anything to take the buffers stay as servers leave them.
		if q.received+q.unacked > 0 {
			if err := socket(listener).set(unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20); err != nil {
				b.Fatal(err)
			}
		}
		if err := socket(listener).setName(unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno"); err != nil {
			b.Fatal(err)
		}
	})
	fillPair(b, w, p, q.received, q.unacked)
	w.silence(b, w.a)
	return w, p
}

// fillPair leaves bytes unread at the server, and unacknowledged by the client.
func fillPair(tb testing.TB, w *wire, p *pair, received, unacked int) {
	tb.Helper()
	writeAll(tb, p.client, ramp(0, received))
	waitFor(tb, "received data", func() bool { in, _, _ := queues(tb, p.server); return in == received })
	for round := 0; round < 8 && unacked > 0; round++ { // slow start
		writeAll(tb, p.server, ramp(0, unacked))
		waitFor(tb, "acknowledgements", func() bool { _, out, _ := queues(tb, p.server); return out == 0 })
		readExactly(tb, p.client, unacked)
	}
	w.settle(tb, w.client) // its last window update, after the reading, must not be held
	w.hold(true, true)
	if unacked > 0 {
		writeAll(tb, p.server, ramp(0, unacked))
		waitFor(tb, "transmission", func() bool { _, out, unsent := queues(tb, p.server); return out == unacked && unsent == 0 })
	}
}

func BenchmarkFreezeTake(b *testing.B) {
	for _, q := range benchQueues() {
		b.Run(q.name, func(b *testing.B) {
			report(b, func(d func(time.Duration)) { bench(b, q, true, d, func(time.Duration) {}) })
		})
	}
	// With everything in the freeze that could have been done before.
	b.Run("empty-whole", func(b *testing.B) {
		report(b, func(d func(time.Duration)) { bench(b, queued{}, false, d, func(time.Duration) {}) })
	})
}

func BenchmarkRestoreThaw(b *testing.B) {
	for _, q := range benchQueues() {
		b.Run(q.name, func(b *testing.B) {
			report(b, func(d func(time.Duration)) { bench(b, q, true, func(time.Duration) {}, d) })
		})
	}
	// With everything after the freeze that could have been done before.
	b.Run("empty-whole", func(b *testing.B) {
		report(b, func(d func(time.Duration)) { bench(b, queued{}, false, func(time.Duration) {}, d) })
	})
}

// report prints the median and the 99th percentile of what run measures: a mean would be that of the machine's other work.
func report(b *testing.B, run func(func(time.Duration))) {
	var all []time.Duration
	run(func(d time.Duration) { all = append(all, d) })
	if len(all) == 0 {
		b.Fatal("nothing measured")
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2]), "ns-median")
	b.ReportMetric(float64(all[len(all)*99/100]), "ns-p99")
}
