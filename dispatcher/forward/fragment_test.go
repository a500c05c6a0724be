// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

// pieces cuts a datagram of a flow into frames of fragments, each of at most size bytes (a multiple of 8) of it.
func pieces(f tcprepair.Flow, id byte, datagram []byte, size int) (frames [][]byte) {
	for at := 0; at < len(datagram); at += size {
		end := min(at+size, len(datagram))
		word := uint16(at / 8)
		if f == flow4() {
			if end < len(datagram) {
				word |= 0x2000
			}
			frames = append(frames, patch(ethernet(nodeMAC(), etherIPv4, ip4(f, protoUDP, nil, word, datagram[at:end])), 14+5, id))
			continue
		}
		word <<= 3
		if end < len(datagram) {
			word |= 1
		}
		frames = append(frames, ethernet(nodeMAC(), etherIPv6,
			ip6(f, protoUDP, datagram[at:end], extension{44, []byte{0, byte(word >> 8), byte(word), 0, 0, 0, id}})))
	}
	return frames
}

// long is a datagram whose payload shows what is lost, doubled or shifted.
func long(f tcprepair.Flow, n int) []byte {
	b := datagram(f, n)
	for i := range b[udpHeader:] {
		b[udpHeader+i] = byte(i % 251)
	}
	return b
}

// TestAssembly puts datagrams together whose fragments come in any order, and twice.
func TestAssembly(t *testing.T) {
	begin := time.Unix(1000, 0)
	random := rand.New(rand.NewPCG(6, 4))
	for _, f := range []tcprepair.Flow{flow4(), flow6()} {
		for _, n := range []int{9, 1480, 4000, 65000} {
			want := long(f, n)
			size := max(8, len(want)/(2+random.IntN(30))&^7)
			var a assembly
			frames := pieces(f, 1, want, size)
			random.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
			for i, frame := range frames {
				scratch := append(make([]byte, 0, maxFrame), frame...)
				p, ok := parseFragment(scratch)
				if !ok {
					t.Fatalf("%v, %d bytes, fragment %d is none", f, n, i)
				}
				got, came, whole := a.add(begin, p, scratch)
				clear(scratch) // the tap's next frame
				if whole != (i == len(frames)-1) {
					t.Fatalf("%v, %d bytes: whole %v after %d of %d", f, n, whole, i+1, len(frames))
				}
				if !whole {
					if _, _, again := a.add(begin, p, frame); again {
						t.Fatal("a repeated fragment has made it whole")
					}
					continue
				}
				if !bytes.Equal(got, want) || len(came) != len(frames) {
					t.Errorf("%v, %d bytes in %d frames: not what was cut", f, n, len(came))
				}
				if first, _ := parseFragment(came[0]); first.offset != 0 {
					t.Errorf("the frame in front is of offset %d", first.offset)
				}
				for _, frame := range frames {
					if !slices.ContainsFunc(came, func(b []byte) bool { return bytes.Equal(b, frame) }) {
						t.Error("a frame is missing")
					}
				}
			}
			if len(a.waiting)+len(a.order)+a.bytes != 0 || a.lost != 0 {
				t.Errorf("%+v is left", a)
			}
		}
	}
}

// TestAssemblyRefuses holds what makes a datagram worthless.
func TestAssemblyRefuses(t *testing.T) {
	part := func(offset, n int, more bool) fragment {
		return fragment{offset: offset, more: more, body: make([]byte, n)}
	}
	for _, tt := range []struct {
		name  string
		parts []fragment
	}{
		{"overlap", []fragment{part(0, 16, true), part(8, 16, true)}},
		{"overlap at the end", []fragment{part(16, 16, false), part(8, 16, true)}},
		{"another end", []fragment{part(16, 16, false), part(32, 8, false)}},
		{"beyond the end", []fragment{part(16, 16, false), part(32, 8, true)}},
		{"an end before what came", []fragment{part(32, 8, true), part(16, 8, false)}},
		{"empty", []fragment{part(0, 0, true)}},
		{"odd", []fragment{part(0, 9, true)}},
		{"too long", []fragment{part(65528, 8, false)}},
	} {
		var a assembly
		for i, p := range tt.parts {
			frame := make([]byte, len(p.body))
			p.body = frame
			if _, _, whole := a.add(time.Unix(1, 0), p, frame); whole {
				t.Errorf("%s: whole after %d", tt.name, i+1)
			}
		}
		if a.lost != 1 || len(a.waiting) != 0 || a.bytes != 0 {
			t.Errorf("%s: %+v", tt.name, a)
		}
	}
}

// TestAssemblyBounds holds that a flood of first fragments costs bounded memory, and that time ends what is left.
func TestAssemblyBounds(t *testing.T) {
	var a assembly
	now := time.Unix(1000, 0)
	frame := make([]byte, 1480)
	const flood = 10 * maxSplit
	for i := range uint32(flood) {
		a.add(now, fragment{key: fragmentKey{id: i}, more: true, body: frame}, frame)
		if len(a.waiting) > maxSplit || len(a.order) != len(a.waiting) || a.bytes > maxSplitBytes {
			t.Fatalf("%d datagrams, %d bytes are kept", len(a.waiting), a.bytes)
		}
	}
	if a.lost != flood-maxSplit {
		t.Errorf("%d lost, want %d", a.lost, flood-maxSplit)
	}
	large := make([]byte, 1<<16-8)
	for i := range uint32(2 * maxSplitBytes / len(large)) {
		a.add(now, fragment{key: fragmentKey{id: flood + i}, more: true, body: large}, large)
		if a.bytes > maxSplitBytes {
			t.Fatalf("%d bytes are kept", a.bytes)
		}
	}
	a.add(now.Add(splitTime), fragment{key: fragmentKey{id: 1 << 20}, more: true, body: frame}, frame)
	if len(a.waiting) != 1 || a.bytes != len(frame) {
		t.Errorf("%d datagrams, %d bytes are left after %v", len(a.waiting), a.bytes, splitTime)
	}
	for i := range 2 * maxPieces {
		a.add(now.Add(splitTime), fragment{key: fragmentKey{id: 7}, offset: 8 * i, more: true, body: frame[:8]}, frame[:8])
		if s := a.waiting[fragmentKey{id: 7}]; s != nil && len(s.parts) > maxPieces {
			t.Fatalf("%d parts of one datagram", len(s.parts))
		}
	}
}

func TestParseFragment(t *testing.T) {
	whole4 := ethernet(nodeMAC(), etherIPv4, ip4(flow4(), protoUDP, nil, 0x4000, datagram(flow4(), 10)))
	atomic6 := ethernet(nodeMAC(), etherIPv6, ip6(flow6(), protoUDP, datagram(flow6(), 10), extension{44, []byte{0, 0, 0, 0, 0, 0, 9}}))
	segment4 := ethernet(nodeMAC(), etherIPv4, ip4(flow4(), protoTCP, nil, 0x2000, segment(flow4(), ack, 12)))
	for name, frame := range map[string][]byte{"whole": whole4, "atomic": atomic6, "TCP": segment4, "short": whole4[:30], "empty": nil} {
		if f, ok := parseFragment(frame); ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
	behind := ethernet(nodeMAC(), etherIPv6, ip6(flow6(), protoUDP, make([]byte, 16),
		extension{0, make([]byte, 7)}, extension{44, []byte{0, 0, 41, 1, 2, 3, 4}}))
	f, ok := parseFragment(behind)
	if !ok || f.offset != 40 || !f.more || f.key.id != 0x01020304 || len(f.body) != 16 || f.key.source != flow6().Remote.Addr() {
		t.Errorf("behind another header: %+v, %v", f, ok)
	}
}

// FuzzAssembly puts frames of any kind together: what comes out whole is as long as its parts, and bounds hold.
func FuzzAssembly(f *testing.F) {
	for _, flow := range []tcprepair.Flow{flow4(), flow6()} {
		var all []byte
		for _, frame := range pieces(flow, 1, long(flow, 100), 40) {
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(frame))), frame...)
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a assembly
		now := time.Unix(1000, 0)
		for len(b) >= 2 {
			n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
			frame := b[2 : 2+n : 2+n]
			b = b[2+n:]
			now = now.Add(time.Duration(n) * time.Millisecond)
			p, ok := parseFragment(frame)
			if !ok {
				continue
			}
			if whole, frames, ok := a.add(now, p, frame); ok {
				sum := 0
				for _, frame := range frames {
					q, _ := parseFragment(frame)
					if !bytes.Equal(whole[q.offset:][:len(q.body)], q.body) {
						t.Error("a part is not in its place")
					}
					sum += len(q.body)
				}
				if sum != len(whole) {
					t.Errorf("%d bytes of parts make %d", sum, len(whole))
				}
				assembled(p.key, whole, frames)
			}
			if len(a.waiting) > maxSplit || len(a.order) != len(a.waiting) || a.bytes > maxSplitBytes || a.bytes < 0 {
				t.Fatalf("%d, %d, %d bytes", len(a.waiting), len(a.order), a.bytes)
			}
		}
	})
}
