// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/session"
)

// bench drives a watch and names its frames.
type bench struct {
	t     testing.TB
	w     *watch
	now   time.Time
	names map[*byte]string
}

func newBench(t testing.TB, change func(*limits)) *bench {
	l := limits{hold: 50 * time.Millisecond, frames: 8, bytes: 1 << 20, flows: 4, idle: time.Minute, gap: time.Second}
	if change != nil {
		change(&l)
	}
	w := newWatch(l, func(k session.Key) (Mode, bool) {
		return ModeRTSP, k.Server.Port() == signalPort || k.Server.Port() == datagrams
	}, newLineParser)
	return &bench{t: t, w: w, now: time.Unix(1000, 0), names: make(map[*byte]string)}
}

// arrive gives the watch a frame called by its text and returns what was released.
func (b *bench) arrive(k session.Key, p part) string {
	f := frameOf(b.t, k, p)
	name := strings.TrimSpace(p.text)
	switch {
	case p.syn:
		name = "SYN"
	case p.fin:
		name += "FIN"
	case p.rst:
		name += "RST"
	}
	b.names[&f[0]] = name
	b.w.frame(b.now, 0, f)
	return b.released()
}

func (b *bench) released() string {
	var names []string
	for _, h := range b.w.released {
		names = append(names, b.names[&h.frame[0]])
	}
	b.w.released = nil
	return strings.Join(names, ", ")
}

func (b *bench) confirm(id uint64) string {
	b.w.confirmed(b.now, id)
	return b.released()
}

func (b *bench) after(d time.Duration) string {
	b.now = b.now.Add(d)
	b.w.tick(b.now)
	return b.released()
}

// reports returns the halves that are to be sent, by report.
func (b *bench) reports() string {
	var all []string
	for _, r := range b.w.reports {
		all = append(all, fmt.Sprintf("%d: %s", r.id, slices.Collect(func(yield func(string) bool) {
			for _, h := range r.halves {
				if !yield(textOf(h)) {
					return
				}
			}
		})))
	}
	b.w.reports = nil
	return strings.Join(all, ", ")
}

func (b *bench) want(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestWatchHoldsUntilConfirmed(t *testing.T) {
	for _, k := range []session.Key{flow4(), flow6()} {
		b := newBench(t, nil)
		b.want("SYN", b.arrive(k, part{seq: 99, syn: true}), "SYN")
		b.want("nothing said", b.arrive(k, part{seq: 100, text: "hello\n"}), "hello")
		b.want("said", b.arrive(k, part{seq: 106, text: "say a\n"}), "")
		b.want("reports", b.reports(), "1: [a]")
		b.want("behind it", b.arrive(k, part{seq: 112, text: "later\n"}), "")
		b.want("other answer", b.confirm(7), "")
		b.want("confirmed", b.confirm(1), "say a, later")
		b.want("again", b.confirm(1), "")
		b.want("retransmission", b.arrive(k, part{seq: 106, text: "say a\n"}), "say a")
		b.want("no second report", b.reports(), "")
	}
}

func TestWatchReleasesInTheEnd(t *testing.T) {
	b := newBench(t, nil)
	b.arrive(flow4(), part{seq: 99, syn: true})
	b.arrive(flow4(), part{seq: 100, text: "say a\n"})
	b.now = b.now.Add(20 * time.Millisecond)
	b.arrive(flow4(), part{seq: 106, text: "say b\n"})
	b.want("before its time", b.after(29*time.Millisecond), "")
	b.want("the first", b.after(time.Millisecond), "say a")
	b.want("confirmed late", b.confirm(1), "")
	b.want("the second", b.confirm(2), "say b")
	if b.w.counts.Late != 1 {
		t.Errorf("late: %d", b.w.counts.Late)
	}
	if next := b.w.tick(b.now); !next.IsZero() || len(b.w.pending) != 0 || b.w.bytes != 0 {
		t.Errorf("left behind: next %v, pending %v, %d bytes", next, b.w.pending, b.w.bytes)
	}
}

// A reply in pieces, out of order: nothing is released before its bytes are parsed.
func TestWatchReassembles(t *testing.T) {
	b := newBench(t, nil)
	k := flow4()
	b.arrive(k, part{seq: 99, syn: true})
	b.want("the end first", b.arrive(k, part{seq: 104, text: "c\nrest\n"}), "")
	b.want("no report yet", b.reports(), "")
	// The client cannot read "say c" without the segment that is held.
	b.want("the gap is filled", b.arrive(k, part{seq: 100, text: "say "}), "c\nrest")
	b.want("reports", b.reports(), "1: [c]")
	b.want("confirmed", b.confirm(1), "say")
	b.want("a missing segment is not waited for", b.arrive(k, part{seq: 120, text: "say d\n"}), "")
	b.want("too long", b.after(50*time.Millisecond), "say d")
	b.want("it was not parsed", b.reports(), "")
	b.now = b.now.Add(1500 * time.Millisecond)
	b.want("begin again", b.arrive(k, part{seq: 126, text: "say e\n"}), "")
	b.want("reports", b.reports(), "2: [e]")
	b.want("confirmed", b.confirm(2), "say e")
	b.want("and go on", b.arrive(k, part{seq: 132, text: "word\n"}), "word")
}

func TestWatchTakesUpInTheMiddle(t *testing.T) {
	b := newBench(t, nil)
	b.want("middle", b.arrive(flow4(), part{seq: 5000, text: "say a\n"}), "")
	b.want("reports", b.reports(), "1: [a]")
	b.want("confirmed", b.confirm(1), "say a")
}

func TestWatchSequenceWraps(t *testing.T) {
	b := newBench(t, nil)
	b.arrive(flow4(), part{seq: 0xfffffffc, syn: true})
	b.want("wraps", b.arrive(flow4(), part{seq: 0xfffffffd, text: "say a\n"}), "")
	b.want("confirmed", b.confirm(1), "say a")
	b.want("after", b.arrive(flow4(), part{seq: 3, text: "say b\n"}), "")
	b.want("reports", b.reports(), "1: [a], 2: [b]")
}

// The same addresses are used again: the new connection has sequence numbers of its own.
func TestWatchNextConnection(t *testing.T) {
	for _, isn := range []uint32{50, 5000, 1 << 31, 1<<31 + 200} {
		for _, end := range []part{{}, {seq: 106, fin: true}, {seq: 106, rst: true}} {
			b := newBench(t, nil)
			b.arrive(flow4(), part{seq: 99, syn: true})
			b.arrive(flow4(), part{seq: 100, text: "hello\n"})
			if end.fin || end.rst {
				b.arrive(flow4(), end)
				if len(b.w.lines) != 0 {
					t.Errorf("%d flows after the end", len(b.w.lines))
				}
			}
			b.want("SYN", b.arrive(flow4(), part{seq: isn, syn: true}), "SYN")
			b.want("SYN again", b.arrive(flow4(), part{seq: isn, syn: true}), "SYN")
			b.want("said", b.arrive(flow4(), part{seq: isn + 1, text: "say a\n"}), "")
			b.want("confirmed", b.confirm(1), "say a")
		}
	}
}

func TestWatchDatagrams(t *testing.T) {
	b := newBench(t, nil)
	k := over(unix.IPPROTO_UDP, datagrams, flow4())
	b.want("nothing said", b.arrive(k, part{text: "hello\n"}), "hello")
	b.want("said", b.arrive(k, part{text: "say a\n"}), "")
	b.want("another", b.arrive(k, part{text: "say b\n"}), "")
	b.want("behind", b.arrive(k, part{text: "hello\n"}), "")
	b.want("out of order", b.confirm(2), "")
	b.want("first", b.confirm(1), "say a, say b, hello")
	if len(b.w.lines) != 0 {
		t.Errorf("%d flows are left of datagrams", len(b.w.lines))
	}
}

func TestWatchFlowsAreIndependent(t *testing.T) {
	b := newBench(t, nil)
	b.arrive(flow4(), part{seq: 99, syn: true})
	b.arrive(flow6(), part{seq: 99, syn: true})
	b.want("one", b.arrive(flow4(), part{seq: 100, text: "say a\n"}), "")
	b.want("other", b.arrive(flow6(), part{seq: 100, text: "hello\n"}), "hello")
}

func TestWatchBounds(t *testing.T) {
	t.Run("frames", func(t *testing.T) {
		b := newBench(t, func(l *limits) { l.frames = 2 })
		b.arrive(flow4(), part{seq: 99, syn: true})
		b.arrive(flow4(), part{seq: 100, text: "say a\n"})
		b.arrive(flow4(), part{seq: 106, text: "one\n"})
		b.want("too many: all go, in order", b.arrive(flow4(), part{seq: 110, text: "two\n"}), "say a, one, two")
		if b.w.counts.Overflow != 1 || b.w.bytes != 0 {
			t.Errorf("overflow %d, %d bytes", b.w.counts.Overflow, b.w.bytes)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		b := newBench(t, func(l *limits) { l.bytes = 100 })
		b.arrive(flow4(), part{seq: 99, syn: true})
		b.want("room", b.arrive(flow4(), part{seq: 100, text: "say a\n"}), "")
		b.want("no room", b.arrive(flow4(), part{seq: 106, text: "say b\n"}), "say a, say b")
	})
	t.Run("flows", func(t *testing.T) {
		b := newBench(t, func(l *limits) { l.flows = 1 })
		b.arrive(flow4(), part{seq: 99, syn: true})
		b.want("unread", b.arrive(flow6(), part{seq: 100, text: "say a\n"}), "say a")
		b.want("no report", b.reports(), "")
		b.now = b.now.Add(2 * time.Minute)
		b.w.sweep(b.now)
		b.want("room again", b.arrive(flow6(), part{seq: 106, text: "say b\n"}), "")
	})
	t.Run("halves of one report", func(t *testing.T) {
		b := newBench(t, nil)
		b.want("many", b.arrive(over(unix.IPPROTO_UDP, datagrams, flow4()), part{text: strings.Repeat("say a\n", 200) + strings.Repeat("say b\n", 200)}), "")
		if n := len(b.w.reports); n != 2 {
			t.Fatalf("%d reports", n)
		}
		b.want("the first is not enough", b.confirm(1), "")
		if got := b.confirm(2); got == "" {
			t.Error("still held")
		}
	})
	t.Run("other service", func(t *testing.T) {
		b := newBench(t, nil)
		b.want("passes", b.arrive(over(unix.IPPROTO_TCP, 80, flow4()), part{seq: 1, text: "say a\n"}), "say a")
		if b.w.counts.Unread != 1 {
			t.Errorf("unread: %d", b.w.counts.Unread)
		}
	})
}

func TestWatchOpaque(t *testing.T) {
	b := newBench(t, nil)
	b.arrive(flow4(), part{seq: 99, syn: true})
	b.want("released", b.arrive(flow4(), part{seq: 100, text: "secret\n"}), "secret")
	b.arrive(flow4(), part{seq: 107, text: "\x17\x03\x03"})
	if diff := cmp.Diff([]session.Key{flow4()}, b.w.exempt, cmp.Comparer(func(a, b session.Key) bool { return a == b })); diff != "" {
		t.Errorf("exempt (-want +got):\n%s", diff)
	}
	b.arrive(flow4(), part{seq: 9000, syn: true})
	if len(b.w.resume) != 1 || b.w.resume[0] != flow4() {
		t.Errorf("resume: %v", b.w.resume)
	}
	b.want("read again", b.arrive(flow4(), part{seq: 9001, text: "say a\n"}), "")
}

// Whatever the division, order and repetition of segments: the same halves, each byte stream once, and every frame released once.
func TestWatchAnyDivision(t *testing.T) {
	var text strings.Builder
	var want []string
	for i := range 40 {
		fmt.Fprintf(&text, "word %d\nsay %d\n", i*i, i)
		want = append(want, fmt.Sprint(i))
	}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := newBench(t, func(l *limits) { l.frames = 1000 })
		isn := r.Uint32()
		b.arrive(flow4(), part{seq: isn, syn: true})
		var parts []part
		for at := 0; at < text.Len(); {
			n := min(1+r.IntN(40), text.Len()-at)
			parts = append(parts, part{seq: isn + 1 + uint32(at), text: text.String()[at : at+n]})
			if r.IntN(4) == 0 { // a repetition with other bounds
				back := r.IntN(min(at+1, 30))
				parts = append(parts, part{seq: isn + 1 + uint32(at-back), text: text.String()[at-back : at+n]})
			}
			at += n
		}
		for i := range parts { // not far from their places
			j := min(i+r.IntN(4), len(parts)-1)
			parts[i], parts[j] = parts[j], parts[i]
		}
		released, got := 0, []string(nil)
		for _, p := range parts {
			b.w.frame(b.now, 0, frameOf(t, flow4(), p))
			released += len(b.w.released)
			for _, r := range b.w.reports {
				for _, h := range r.halves {
					got = append(got, textOf(h))
				}
				b.w.confirmed(b.now, r.id)
			}
			b.w.reports = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: halves (-want +got):\n%s", seed, diff)
		}
		if b.w.counts.Released != uint64(len(parts))+1 || b.w.counts.Late != 0 {
			t.Fatalf("seed %d: %d frames: %+v", seed, len(parts)+1, b.w.counts)
		}
	}
}

func FuzzWatch(f *testing.F) {
	for _, text := range []string{"say a\n", "secret\n", "hello"} {
		f.Add(frameOf(f, flow4(), part{seq: 1, text: text}), frameOf(f, flow4(), part{seq: 3, text: text}), frameOf(f, flow4(), part{seq: 1, text: text, fin: true}))
		f.Add(frameOf(f, flow6(), part{seq: 1, syn: true}), frameOf(f, flow6(), part{seq: 8, text: text}), frameOf(f, flow6(), part{seq: 2, text: text}))
		f.Add(frameOf(f, over(17, datagrams, flow4()), part{text: text}), frameOf(f, flow4(), part{rst: true}), []byte{})
	}
	f.Fuzz(func(t *testing.T, one, two, three []byte) {
		b := newBench(t, nil)
		n := 0
		for _, frame := range [][]byte{one, two, three, two, one} {
			b.w.frame(b.now, 0, frame)
			n += len(b.w.released)
			b.w.released = nil
			b.now = b.now.Add(time.Millisecond)
		}
		b.w.tick(b.now.Add(time.Second))
		if n += len(b.w.released); n != 5 || b.w.bytes != 0 || len(b.w.waiting) != 0 {
			t.Fatalf("%d of 5 frames released, %d bytes, %d flows held", n, b.w.bytes, len(b.w.waiting))
		}
	})
}
