// SPDX-License-Identifier: Apache-2.0

package shortcut

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	ours   = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	theirs = net.HardwareAddr{2, 0, 0, 0, 0, 2}
	asked  = netip.MustParseAddr("10.66.0.2")
)

func TestQuestion(t *testing.T) {
	want := []byte{
		0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6,
		0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 66, 0, 2,
	}
	want = append(want, make([]byte, 18)...) // up to the least length of a frame
	if d := cmp.Diff(want, Question(ours, asked)); d != "" {
		t.Error(d)
	}
}

// reply is what a neighbour answers to a Question.
func reply() []byte {
	b := slices.Concat(ours, theirs, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 2}, theirs, asked.AsSlice(), ours, []byte{0, 0, 0, 0})
	return append(b, make([]byte, 18)...)
}

func patched(at int, v ...byte) []byte {
	b := reply()
	copy(b[at:], v)
	return b
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
		want  netip.Addr
	}{
		{"answer", reply(), asked},
		{"without padding", reply()[:arpSize], asked},
		{"cut", reply()[:arpSize-1], netip.Addr{}},
		{"empty", nil, netip.Addr{}},
		{"to somebody else", patched(0, 2, 0, 0, 0, 0, 9), netip.Addr{}},
		{"not ARP", patched(12, 8, 0), netip.Addr{}},
		{"not Ethernet", patched(14, 0, 6), netip.Addr{}},
		{"not IPv4", patched(16, 0x86, 0xdd), netip.Addr{}},
		{"a request", patched(20, 0, 1), netip.Addr{}},
		{"about somebody else", patched(32, 2, 0, 0, 0, 0, 9), netip.Addr{}},
		{"to an address, which others ask from", patched(38, 10, 66, 0, 1), netip.Addr{}},
		{"the question itself", Question(ours, asked), netip.Addr{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := answerOf(ours, c.frame); got != c.want {
				t.Errorf("answer of %v, want %v", got, c.want)
			}
		})
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(reply())
	f.Add(Question(ours, asked))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, frame []byte) {
		a := answerOf(ours, frame)
		if !a.IsValid() {
			return
		}
		if !a.Is4() || len(frame) < arpSize || !slices.Equal(frame[:6], ours) {
			t.Errorf("%v in %x", a, frame)
		}
	})
}
