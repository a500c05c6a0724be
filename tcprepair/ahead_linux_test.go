// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestTakeRest takes the receive queue in two parts: one while the connection is alive, and the rest when it is frozen.
func TestTakeRest(t *testing.T) {
	for _, tt := range []struct {
		name         string
		ahead, later int
	}{
		{"nothing", 0, 0},
		{"everything ahead", 50000, 0},
		{"everything later", 0, 50000},
		{"both", 30000, 20001},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWire(t)
			p := w.connect(t, v4, nil)
			receive := func(from, n int) {
				writeAll(t, p.client, ramp(from, n))
				waitFor(t, "the data", func() bool { in, _, _ := queues(t, p.server); return in == from+n })
			}
			receive(0, tt.ahead)
			half, err := PeekReceived(p.server, Limits{QueueBytes: max(tt.ahead/2, 1)}, 0)
			if err != nil {
				t.Fatal(err)
			}
			ahead, err := PeekReceived(p.server, Limits{}, len(half))
			if err != nil {
				t.Fatal(err)
			}
			ahead = append(half, ahead...)
			if !bytes.Equal(ahead, ramp(0, tt.ahead)) {
				t.Errorf("%d bytes ahead, want the ramp's first %d", len(ahead), tt.ahead)
			}
			receive(tt.ahead, tt.later)
			w.hold(true, true)
			w.a.do(func() { err = Freeze(p.server) })
			if err != nil {
				t.Fatal(err)
			}
			o, err := ReadOutline(p.server)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := o.TakeRest(p.server, Limits{}, len(ahead))
			if err != nil {
				t.Fatal(err)
			}
			if len(rest.Received) != tt.later {
				t.Errorf("%d bytes of rest, want %d", len(rest.Received), tt.later)
			}
			whole, err := o.Take(p.server, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			rest.Prepend(ahead)
			if d := cmp.Diff(whole.Received, rest.Received); d != "" || whole.ReceiveSeq != rest.ReceiveSeq {
				t.Errorf("sequence number %d, want %d; data: %s", rest.ReceiveSeq, whole.ReceiveSeq, d)
			}
			if _, err := o.TakeRest(p.server, Limits{}, tt.ahead+tt.later+1); !errors.Is(err, ErrUnstable) {
				t.Errorf("taken although somebody has read: %v", err)
			}
		})
	}
}

// TestAdopt thaws a connection by way of a second descriptor, after the process that had restored it is gone.
func TestAdopt(t *testing.T) {
	w := newWire(t)
	p := w.connect(t, v4, nil)
	s := snapshotOf(t, p)
	if s.Late() {
		t.Error("an idle connection has something late")
	}
	if err := Discard(p.server); err != nil {
		t.Fatal(err)
	}
	var r *Restored
	var err error
	w.b.do(func() { r, err = Restore(s, RestoreConfig{}) })
	if err != nil {
		t.Fatal(err)
	}
	kept, err := unix.Dup(r.FD())
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	adopted, err := Adopt(kept)
	if err != nil {
		t.Fatal(err)
	}
	if adopted.Flow() != s.Flow {
		t.Errorf("adopted %v, want %v", adopted.Flow(), s.Flow)
	}
	w.own(w.b)
	if err := adopted.Thaw(); err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(p.server)
	p.server, p.serverHost = adopted.Disown(), w.b
	w.hold(false, false)
	talk(t, p)
	if _, err := Adopt(-1); err == nil {
		t.Error("adopted a closed descriptor")
	}
}

func TestLate(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    Snapshot
		want bool
	}{
		{"idle", Snapshot{State: Established}, false},
		{"unacknowledged", Snapshot{State: Established, Unacked: []byte{1}}, false},
		{"unsent", Snapshot{State: Established, Unsent: []byte{1}}, true},
		{"peer closed", Snapshot{State: CloseWait}, false},
		{"FIN sent", Snapshot{State: FinWait1, FinSent: true}, false},
		{"FIN not sent", Snapshot{State: FinWait1}, true},
		{"FIN acknowledged", Snapshot{State: FinWait2, FinSent: true}, false},
		{"closing", Snapshot{State: Closing, FinSent: true}, true},
	} {
		if got := tt.s.Late(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestSwallowedAck moves a connection that has received data of which the peer has heard nothing. The peer must hear of it
// from the new host, before its retransmission timeout.
func TestSwallowedAck(t *testing.T) {
	for _, f := range []family{v4, v6, mapped} {
		t.Run(string(f), func(t *testing.T) {
			const size = 3000
			w := newWire(t)
			w.client.sysctl(t, "ipv4/tcp_early_retrans", "0") // no tail loss probe helps
			p := w.connect(t, f, nil)
			w.hold(false, true) // the client's data comes through, the server's acknowledgement does not
			writeAll(t, p.client, ramp(0, size))
			waitFor(t, "the data", func() bool { in, _, _ := queues(t, p.server); return in == size })
			w.mu.Lock()
			w.heldDown = nil // gone for good
			w.mu.Unlock()
			s := w.move(t, p, false)
			if !s.AckDue {
				t.Error("no acknowledgement is due")
			}
			w.hold(false, false)
			waitFor(t, "the acknowledgement", func() bool { _, out, _ := queues(t, p.client); return out == 0 })
			if n := infoOf(t, p.client).totalRetrans; n != 0 {
				t.Errorf("the client sent %d segments again", n)
			}
			if got := readExactly(t, p.server, size); !bytes.Equal(got, ramp(0, size)) {
				t.Error("the stream differs")
			}
			talk(t, p)
		})
	}
}
