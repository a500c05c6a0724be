// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// move moves the server's end of p to the other server, through the codec, as a production move would: packets of the client are held,
// and nothing of the servers may reach the wire from the freeze to the thaw.
func (w *wire) move(tb testing.TB, p *pair, keepHolding bool) *Snapshot {
	tb.Helper()
	source, target := p.serverHost, w.a
	if source == w.a {
		target = w.b
	}
	w.mu.Lock()
	down := w.holdDown
	w.mu.Unlock()
	w.hold(true, down)

	outline, err := ReadOutline(p.server)
	if err != nil {
		tb.Fatal(err)
	}
	var taken *Snapshot
	source.do(func() { taken, err = outline.FreezeTake(p.server, Limits{}, 0) })
	if err != nil {
		tb.Fatal(err)
	}
	b, err := taken.MarshalBinary()
	if err != nil {
		tb.Fatal(err)
	}
	s, err := Decode(b, Limits{})
	if err != nil {
		tb.Fatal(err)
	}
	if err := Discard(p.server); err != nil {
		tb.Fatal(err)
	}
	_ = unix.Close(p.server)
	p.server = -1

	w.settle(tb, target)
	before, _ := w.count(target)
	start := time.Now()
	var r *Restored
	target.do(func() { r, err = Restore(s, RestoreConfig{}) })
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	w.settle(tb, target)
	switch after, _ := w.count(target); {
	case s.State == CloseWait || s.State == LastAck:
		w.early += after - before // a timer tick may come in between: see Restore
	case after != before && time.Since(start) > 100*time.Millisecond:
		tb.Logf("restoring took so long that a retransmission timer has expired: %s", time.Since(start))
	case after != before:
		tb.Errorf("restoring sent %d packets", after-before)
	}
	w.own(target)
	if err := r.Thaw(); err != nil {
		tb.Fatal(err)
	}
	p.server, p.serverHost = r.Disown(), target
	w.hold(keepHolding, down)
	return s
}

// TestInFlight moves a connection while data is under way in both directions: held, not lost, so neither end has to send
// anything twice.
func TestInFlight(t *testing.T) {
	const size, attempts = 4000, 20
	w := newWire(t)
	for range attempts {
		w.forget()
		p := w.connect(t, v4, nil)
		w.hold(true, true)
		start := time.Now()
		writeAll(t, p.client, ramp(0, size))
		writeAll(t, p.server, ramp(0, size))
		w.settle(t, w.client)
		w.settle(t, w.a)
		w.move(t, p, true)
		w.hold(false, false)
		late := time.Since(start)
		up, down := readExactly(t, p.server, size), readExactly(t, p.client, size)
		if !bytes.Equal(up, ramp(0, size)) || !bytes.Equal(down, ramp(0, size)) {
			t.Fatal("the streams differ")
		}
		waitFor(t, "acknowledgements", func() bool { _, out, _ := queues(t, p.server); return out == 0 })
		client, server := infoOf(t, p.client).totalRetrans, infoOf(t, p.server).totalRetrans
		if client == 0 && server == 0 {
			return
		}
		// Tail loss probes come after two jiffies on a path as short as this one.
		if t.Logf("held for %s: the client sent %d segments twice, the server %d", late, client, server); late < 4*time.Millisecond {
			t.Fatal("retransmissions")
		}
	}
	t.Errorf("not once without retransmissions in %d attempts", attempts)
}
