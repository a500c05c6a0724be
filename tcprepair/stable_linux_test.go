// SPDX-License-Identifier: Apache-2.0

package tcprepair

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnheld takes snapshots while nobody holds the packets: each is either whole or ErrUnstable, and the connection suffers from none.
func TestUnheld(t *testing.T) {
	const size, snapshots = 1 << 20, 200
	w := newWire(t)
	p := w.connect(t, v4, nil)
	written := make(chan error, 1)
	go func() {
		b := ramp(0, size)
		for len(b) > 0 {
			n, err := socket(p.client).send(b)
			if err == nil {
				b = b[n:]
			} else if !errors.Is(err, unix.EAGAIN) {
				written <- err // the test is over
				return
			}
		}
		written <- nil
	}()
	var got []byte
	whole := 0
	for range snapshots {
		var err error
		w.a.do(func() { err = Freeze(p.server) })
		if err != nil {
			t.Fatal(err)
		}
		s, err := Take(p.server, Limits{})
		switch {
		case err == nil:
			whole++
			if !bytes.Equal(s.Received, ramp(len(got), len(s.Received))) {
				t.Fatalf("after %d bytes the snapshot has something else", len(got))
			}
		case !errors.Is(err, ErrUnstable):
			t.Fatal(err)
		}
		if err := Resume(p.server); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 8<<10)
		if n, err := socket(p.server).receive(b, 0); err == nil {
			got = append(got, b[:n]...)
		}
	}
	got = append(got, readExactly(t, p.server, size-len(got))...)
	if err := <-written; err != nil || !bytes.Equal(got, ramp(0, size)) {
		t.Errorf("the stream differs: %v", err)
	}
	t.Logf("%d of %d snapshots were whole", whole, snapshots)
}

// TestSameMoment changes each thing by which take sees that a packet came or went.
func TestSameMoment(t *testing.T) {
	one := tcpInfo{state: Established, segsIn: 10, segsOut: 20, notSent: 30, rtt: 5}
	calm := one
	calm.rtt, calm.lastRecv = 6, 100
	calm.notSent = 0 // what the kernel only believes to have sent: see take
	if !sameMoment(&one, &calm) {
		t.Error("the passing of time counts")
	}
	for name, change := range map[string]func(*tcpInfo){
		"state":    func(i *tcpInfo) { i.state = CloseWait },
		"received": func(i *tcpInfo) { i.segsIn++ },
		"sent":     func(i *tcpInfo) { i.segsOut++ },
	} {
		other := one
		if change(&other); sameMoment(&one, &other) {
			t.Errorf("%s does not count", name)
		}
	}
}
