// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"testing"
	"time"
)

// The two clocks go together: what jiffies say is CLOCK_MONOTONIC as of the last tick, also later on.
func TestJiffies(t *testing.T) {
	h := network(t, 1)[0]
	h.do(t, func() error {
		first, err := measureJiffies()
		if err != nil {
			return err
		}
		if first.length < 1e6 || first.length > 1e7 {
			t.Errorf("a tick of %d ns, want 1 to 10 ms", first.length)
		}
		length := time.Duration(first.length)
		// A host that is busy may be late to count.
		for end := monotonic() + 5*length; monotonic() < end; {
			time.Sleep(length / 4)
			again, err := measureJiffies()
			if err != nil {
				return err
			}
			if apart := time.Duration(again.zero - first.zero).Abs(); apart > 2*length {
				t.Fatalf("the clocks were %v apart, of ticks of %v", apart, length)
			}
		}
		return nil
	})
}

// The programs and user space's operations agree about the time: a flow that has been idle for a while is not, after a packet.
func TestIdleAfterPacket(t *testing.T) {
	s := newStand(t, Config{})
	if _, err := s.Adopt(flow4(), 1, node); err != nil {
		t.Fatal(err)
	}
	idle := func() int32 {
		t.Helper()
		ops := []operation{s.operation(forwardCodeOP_QUERY, flow4())}
		if err := s.run(ops); err != nil || ops[0].result != 0 {
			t.Fatal(err, ops[0].result)
		}
		return int32(ops[0].idle)
	}
	const many, few = 100, 20 // ticks: of jiffies there may be 10 ms to each, and the host may be busy
	for begin := time.Now(); idle() < many; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("idle for %d ticks", idle())
		}
	}
	for begin := time.Now(); ; {
		if v, _ := s.execute(t, TCX, packetOf(s.mac, flow4(), protoTCP, ack, 0)); v != redirected {
			t.Fatal(v)
		}
		if n := idle(); n < few {
			return
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("idle for %d ticks after a packet", idle())
		}
	}
}
