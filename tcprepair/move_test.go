// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"testing"

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

	var err error
	source.do(func() { err = Freeze(p.server) })
	if err != nil {
		tb.Fatal(err)
	}
	taken, err := Take(p.server, Limits{})
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
	var r *Restored
	target.do(func() { r, err = Restore(s, RestoreConfig{}) })
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	w.settle(tb, target)
	if after, _ := w.count(target); after != before {
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

func TestMoveEmpty(t *testing.T) {
	w := newWire(t)
	for _, f := range []family{v4, v6, mapped} {
		t.Run(string(f), func(t *testing.T) {
			p := w.connect(t, f, nil)
			was := infoOf(t, p.server)
			t.Logf("%+v", was)
			s := w.move(t, p, false)
			t.Logf("%+v", s)
			t.Logf("%+v", infoOf(t, p.server))
			w.move(t, p, false)
			if _, err := unix.Write(p.server, ramp(0, 1000)); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "data", func() bool { n, _, _ := queues(t, p.client); return n == 1000 })
		})
	}
}
