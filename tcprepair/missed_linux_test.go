// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"testing"
	"time"

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

// TestMissedUnheld looks for late packets while they come: what it returns is the stream behind the watermark, or ErrUnstable.
func TestMissedUnheld(t *testing.T) {
	const size, piece = 40 << 10, 200
	w := newWire(t)
	p := w.connect(t, v4, nil)
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
	if err := socket(p.client).set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		b := ramp(0, size)
		for len(b) > 0 {
			n, err := socket(p.client).send(b[:min(len(b), piece)])
			if err == nil {
				b = b[n:]
				time.Sleep(100 * time.Microsecond) // spread over many looks
			} else if !errors.Is(err, unix.EAGAIN) {
				written <- err
				return
			}
		}
		written <- unix.Shutdown(p.client, unix.SHUT_WR)
	}()
	mark := snap.Watermark()
	whole, parts := 0, 0
	look := func() (got []byte, fin bool) {
		packets, err := mark.Missed(p.server)
		if err != nil {
			if !errors.Is(err, ErrUnstable) {
				t.Fatal(err)
			}
			return nil, false
		}
		for _, b := range packets {
			tcp := b[int(b[0]&0xf)*4:]
			got = append(got, tcp[int(tcp[12]>>4)*4:]...)
			fin = tcp[13]&tcpFIN != 0
		}
		if !bytes.Equal(got, ramp(0, len(got))) {
			t.Fatalf("%d late bytes are not the stream's", len(got))
		}
		if whole++; len(got) > 0 && len(got) < size {
			parts++
		}
		return got, fin
	}
	for over := false; !over; {
		look()
		select {
		case err := <-written:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		default:
		}
	}
	waitState(t, p.server, CloseWait)
	if got, fin := look(); len(got) != size || !fin {
		t.Errorf("at the end %d bytes, FIN %v; want all of %d, and the FIN", len(got), fin, size)
	}
	if parts == 0 {
		t.Errorf("%d looks, none of them while data came: this proves nothing", whole)
	}
}
