// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// ramp is n bytes in which what is lost, doubled or shifted shows.
func ramp(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// reader collects what a clientStream feeds.
type reader struct {
	bytes.Buffer
	losses int
}

func (r *reader) feed(b []byte, lost bool) {
	if lost {
		r.losses++
	}
	r.Write(b)
}

// TestClientStream gives the segments of a stream in any order, repeated and overlapping, and wants the stream once.
func TestClientStream(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 1))
		want := ramp(1 + random.IntN(4000))
		begin := uint32(random.Uint64())
		if seed%3 == 0 {
			begin = -uint32(random.IntN(len(want))) // it wraps
		}
		type segment struct{ from, to int }
		var segments []segment
		for at := 0; at < len(want); {
			to := min(at+1+random.IntN(400), len(want))
			segments = append(segments, segment{max(at-random.IntN(50), 0), to})
			at = to
		}
		for range random.IntN(len(segments) + 1) {
			segments = append(segments, segments[random.IntN(len(segments))])
		}
		// No segment is so early that the bounds make the stream give up.
		for i := range segments {
			j := i + random.IntN(min(8, len(segments)-i))
			segments[i], segments[j] = segments[j], segments[i]
		}
		var c clientStream
		var got reader
		c.add(begin-1, tcpSYN, nil, got.feed)
		for _, s := range segments {
			c.add(begin+uint32(s.from), 0, want[s.from:s.to], got.feed)
		}
		if !bytes.Equal(got.Bytes(), want) || got.losses > 0 {
			t.Fatalf("seed %d: %d bytes of %d, %d losses", seed, got.Len(), len(want), got.losses)
		}
		if len(c.ahead) > 0 || c.kept != 0 {
			t.Fatalf("seed %d: keeps %d pieces, %d bytes", seed, len(c.ahead), c.kept)
		}
	}
}

// TestClientStreamGap goes on after bytes that never come.
func TestClientStreamGap(t *testing.T) {
	want := ramp(maxAheadBytes * 3)
	for _, size := range []int{1, 100, 1460, 20000} {
		var c clientStream
		var got reader
		c.add(99, tcpSYN, nil, got.feed)
		c.add(100, 0, want[:10], got.feed)
		for at := 20; at+size <= len(want) && at < 60*size; at += size {
			c.add(100+uint32(at), 0, want[at:at+size], got.feed)
			if len(c.ahead) > maxAheadSegments || c.kept > maxAheadBytes {
				t.Fatalf("segments of %d: keeps %d of them, %d bytes", size, len(c.ahead), c.kept)
			}
		}
		if got.losses != 1 || !bytes.Equal(got.Bytes()[:10+size], append(bytes.Clone(want[:10]), want[20:20+size]...)) {
			t.Errorf("segments of %d: %d losses, %d bytes", size, got.losses, got.Len())
		}
	}
}

// TestClientStreamMiddle begins with what it is given first.
func TestClientStreamMiddle(t *testing.T) {
	var c clientStream
	var got reader
	c.add(1000, 0, []byte("c"), got.feed)
	c.add(998, 0, []byte("ab"), got.feed) // before its beginning
	c.add(1001, 0, []byte("d"), got.feed)
	c.add(1000, 0, []byte("cdef"), got.feed)
	if got.String() != "cdef" || got.losses > 0 {
		t.Errorf("%q, %d losses", got.String(), got.losses)
	}
	c.add(5, tcpSYN, []byte("early"), got.feed) // the port again
	c.add(6, 0, []byte("late"), got.feed)
	if got.String() != "cdeflate" {
		t.Errorf("%q after a new SYN", got.String())
	}
}

// TestClientStreamRepetition repeats one segment that is ahead more often than there is room.
func TestClientStreamRepetition(t *testing.T) {
	var c clientStream
	var got reader
	c.add(99, tcpSYN, nil, got.feed)
	for range 2 * maxAheadSegments {
		c.add(102, 0, []byte("cd"), got.feed)
	}
	c.add(100, 0, []byte("ab"), got.feed)
	if got.String() != "abcd" || got.losses > 0 {
		t.Errorf("%q, %d losses", got.String(), got.losses)
	}
}

// FuzzClientStream gives any segments of one stream: what comes out is in order, and never twice.
func FuzzClientStream(f *testing.F) {
	f.Add(uint32(0), []byte{0, 10, 20, 5, 10, 10, 0, 30})
	f.Add(uint32(0xfffffff0), []byte{9, 1, 0, 9, 200, 200, 100, 250})
	f.Fuzz(func(t *testing.T, begin uint32, plan []byte) {
		const unit = 97
		all := ramp(256*unit + 256*unit)
		var c clientStream
		next := uint32(0) // of what is fed, from begin on
		c.add(begin-1, tcpSYN, nil, nil)
		for ; len(plan) >= 2; plan = plan[2:] {
			from, n := int(plan[0])*unit, int(plan[1])*unit/4
			c.add(begin+uint32(from), 0, all[from:from+n], func(b []byte, lost bool) {
				at := c.next - begin - uint32(len(b))
				if len(b) == 0 || at < next || at > next && !lost {
					t.Fatalf("%d bytes at %d, lost %t; %d were fed", len(b), at, lost, next)
				}
				if !bytes.Equal(b, all[at:int(at)+len(b)]) {
					t.Fatalf("other bytes at %d", at)
				}
				next = at + uint32(len(b))
			})
			if len(c.ahead) > maxAheadSegments || c.kept > maxAheadBytes {
				t.Fatalf("keeps %d pieces, %d bytes", len(c.ahead), c.kept)
			}
		}
	})
}
