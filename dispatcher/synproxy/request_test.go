// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"bytes"
	"testing"
)

// FuzzStream cuts a ramp into packets in any order, with any overlap, and looks whether what comes together is the ramp's beginning.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 10, 10, 10, 20, 5}, uint32(1), false)
	f.Add([]byte{20, 5, 10, 10, 0, 10}, uint32(0xfffffff0), true)
	f.Add([]byte{5, 10, 0, 6, 0, 3, 14, 1}, uint32(0xffffffff), true)
	f.Add(bytes.Repeat([]byte{0, 1}, 100), uint32(7), false)
	f.Fuzz(func(t *testing.T, cuts []byte, base uint32, end bool) {
		whole := make([]byte, 600)
		for i := range whole {
			whole[i] = byte(i % 251)
		}
		var s stream
		have := make([]bool, len(whole)) // bytes that were held
		last := -1                       // where the FIN is
		if end {
			for i := 0; i+1 < len(cuts); i += 2 {
				last = max(last, int(cuts[i])+int(cuts[i+1]))
			}
		}
		finHeld := false
		for i := 0; i+1 < len(cuts); i += 2 {
			from, n := int(cuts[i]), int(cuts[i+1])
			p := &packet{seq: base + uint32(from), payload: bytes.Clone(whole[from : from+n]), fin: from+n == last}
			before, count := len(s.bytes), len(s.packets)
			grown := s.add(p, base)
			if len(s.packets) > count {
				for j := from; j < from+n; j++ {
					have[j] = true
				}
				finHeld = finHeld || p.fin
			}
			if !grown && len(s.bytes) != before {
				t.Fatalf("%d bytes more without saying so", len(s.bytes)-before)
			}
		}
		want := 0
		for want < len(have) && have[want] {
			want++
		}
		if len(s.bytes) != want || !bytes.Equal(s.bytes, whole[:want]) {
			t.Fatalf("%d bytes together, want %d", len(s.bytes), want)
		}
		if s.ended != (finHeld && want == last) {
			t.Fatalf("ended %t, with %d of %d bytes", s.ended, want, last)
		}
		if len(s.packets) > maxPackets || s.held > maxHeld {
			t.Fatalf("%d packets, %d bytes held", len(s.packets), s.held)
		}
	})
}

func TestStreamBounds(t *testing.T) {
	var s stream
	for i := range 2 * maxPackets {
		s.add(&packet{seq: uint32(i), payload: []byte{1}}, 0)
	}
	if len(s.packets) != maxPackets || len(s.bytes) != maxPackets {
		t.Errorf("%d packets, %d bytes", len(s.packets), len(s.bytes))
	}
	s = stream{}
	big := make([]byte, 40<<10)
	s.add(&packet{payload: big}, 0)
	if s.add(&packet{seq: uint32(len(big)), payload: big}, 0) || s.held > maxHeld {
		t.Errorf("%d bytes held", s.held)
	}
}
