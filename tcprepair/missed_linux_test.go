// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMissed lets data and a FIN into the frozen socket after its snapshot: the target gets them as packets, and the client sends nothing
// twice.
func TestMissed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		f      family
		before int // bytes in the snapshot
		after  int // bytes behind it
		fin    bool
	}{
		{"nothing", v4, 100, 0, false},
		{"data", v4, 0, 1, false},
		{"behind data", v4, 1000, 777, false},
		{"several packets", v6, 10, 3*missedPiece + 1, false},
		{"FIN", v4, 10, 0, true},
		{"data and FIN", v6, 0, 2 * missedPiece, true},
		{"v4-mapped", mapped, 5, 5, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire(t)
			p := w.connect(t, tt.f, nil)
			writeAll(t, p.client, ramp(0, tt.before))
			waitFor(t, "data", func() bool { in, _, _ := queues(t, p.server); return in == tt.before })
			var snap *Snapshot
			var err error
			w.a.do(func() {
				if err = Freeze(p.server); err == nil {
					snap, err = Take(p.server, Limits{})
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			mark := snap.Watermark()
			writeAll(t, p.client, ramp(tt.before, tt.after))
			if tt.fin {
				if err := unix.Shutdown(p.client, unix.SHUT_WR); err != nil {
					t.Fatal(err)
				}
			}
			// A frozen socket receives: what comes now is what a late packet is.
			waitFor(t, "late data", func() bool { in, _, _ := queues(t, p.server); return in == tt.before+tt.after })
			if tt.fin {
				waitState(t, p.server, CloseWait)
			}
			packets, err := mark.Missed(p.server)
			if err != nil {
				t.Fatal(err)
			}
			if (len(packets) > 0) != (tt.after > 0 || tt.fin) {
				t.Fatalf("%d packets", len(packets))
			}
			if err := Discard(p.server); err != nil {
				t.Fatal(err)
			}
			w.own(w.b)
			var r *Restored
			w.b.do(func() { r, err = Restore(snap, RestoreConfig{}) })
			if err != nil {
				t.Fatal(err)
			}
			fd := r.FD()
			w.b.do(func() { err = r.Thaw() })
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range packets {
				if _, err := w.b.tun.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			if got := readExactly(t, fd, tt.before+tt.after); !bytes.Equal(got, ramp(0, tt.before+tt.after)) {
				t.Error("the stream differs")
			}
			if tt.fin {
				waitState(t, fd, CloseWait)
			}
			if n := infoOf(t, p.client).totalRetrans; n != 0 {
				t.Errorf("the client sent %d segments again", n)
			}
			r.Close()
		})
	}
}
