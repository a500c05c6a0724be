// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/cookie"
)

func versions(t *testing.T, f func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("v6=%t", v6), func(t *testing.T) { f(t, v6) })
	}
}

// What the program says, and what package cookie makes of it, must be the same.
func TestAnswer(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{change: func(c *Config) { c.ECN = true }})
		f := r.newFake(t, v6)
		mss := uint16(1460)
		if v6 {
			mss = 1440
		}
		for i, c := range []struct {
			name  string
			syn   segment
			want  cookie.Offer
			scale int
		}{
			{"all", segment{mss: 1400, sack: true, timestamps: true, scale: 9}, cookie.Offer{MSS: 1400, SACK: true, Timestamps: true, WindowScaling: true, Scale: 9}, 8},
			{"scale 0", segment{mss: 1400, sack: true, timestamps: true, scale: 0}, cookie.Offer{MSS: 1400, SACK: true, Timestamps: true, WindowScaling: true}, 8},
			{"scale 14", segment{mss: 1400, timestamps: true, scale: 14}, cookie.Offer{MSS: 1400, Timestamps: true, WindowScaling: true, Scale: 14}, 8},
			{"scale above 14", segment{mss: 1400, timestamps: true, scale: 99}, cookie.Offer{MSS: 1400, Timestamps: true, WindowScaling: true, Scale: 14}, 8},
			{"no scale", segment{mss: 65495, sack: true, timestamps: true, scale: -1}, cookie.Offer{MSS: 65495, SACK: true, Timestamps: true}, -1},
			{"ECN", segment{flags: "SEC", mss: 1400, sack: true, timestamps: true, scale: 7}, cookie.Offer{MSS: 1400, SACK: true, ECN: true, Timestamps: true, WindowScaling: true, Scale: 7}, 8},
			{"ECN without timestamps", segment{flags: "SEC", mss: 1440, scale: 7}, cookie.Offer{MSS: 1440}, -1},
			{"no timestamps", segment{mss: 1450, sack: true, scale: 7}, cookie.Offer{MSS: 1440}, -1},
			{"nothing", segment{scale: -1}, cookie.Offer{MSS: 536}, -1},
			{"only timestamps", segment{timestamps: true, scale: -1}, cookie.Offer{MSS: 536, Timestamps: true}, -1},
		} {
			t.Run(c.name, func(t *testing.T) {
				if v6 && c.want.MSS == 536 {
					c.want.MSS = 1220
				}
				c.syn.port, c.syn.seq, c.syn.tsval = uint16(2000+i), rand.Uint32(), rand.Uint32()
				if c.syn.flags == "" {
					c.syn.flags = "S"
				}
				a := f.shake(c.syn)
				if a.ack != c.syn.seq+1 || a.window != 29200 || a.mss != mss || a.timestamps != c.syn.timestamps || a.scale != c.scale ||
					a.sack != c.want.SACK || (a.flags == "SAE") != c.want.ECN {
					t.Errorf("answer %+v", a)
				}
				if a.timestamps && a.tsecr != c.syn.tsval {
					t.Errorf("echoes timestamp %d, want %d", a.tsecr, c.syn.tsval)
				}
				got, ok := f.recall(bare(c.syn, a), r.secret)
				c.want.Sequence = c.syn.seq
				if diff := cmp.Diff(c.want, got); diff != "" || !ok {
					t.Errorf("cookie valid %t, says (-want +got)\n%s", ok, diff)
				}
			})
		}
	})
}

// first is a request and its way to the server.
func first(t *testing.T, r *rig, f *fake, segments func(syn, a segment) []segment, want int, ended bool) {
	t.Helper()
	l := listen(t, r.servers[0], all(port), false)
	syn := synOf(uint16(3000+rand.IntN(60000)), rand.Uint32())
	a := f.shake(syn)
	f.send(segments(syn, a)...)
	s := accept(t, l)
	expect(t, "request", s, 0, want)
	if ended {
		if n, err := s.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes and error %v after the request, want its end", n, err)
		}
	}
	send(t, "answer", s, 0, 10)
	got := f.receive("answer", syn.port, func(s segment) bool { return len(s.payload) > 0 })
	if got.seq != a.seq+1 || got.ack != syn.seq+1+uint32(want)+map[bool]uint32{true: 1}[ended] || !got.timestamps || got.tsecr != syn.tsval+1 {
		t.Errorf("answer %+v", got)
	}
	if int32(got.tsval-a.tsval) < 0 {
		t.Errorf("the server's clock begins at %d, before the handshake's %d", got.tsval, a.tsval)
	}
}

func TestFirstPackets(t *testing.T) {
	whole := func(n int) func(Request) Decision {
		return func(q Request) Decision {
			if len(q.Bytes) < n {
				return Decision{}
			}
			return Decision{Verb: Forward, Node: 1}
		}
	}
	part := func(t *testing.T, syn, a segment, from, n int, flags string) segment {
		return data(syn, a, from, ramp(t, from, n), flags)
	}
	for _, c := range []struct {
		name     string
		size     int
		ended    bool
		segments func(t *testing.T, syn, a segment) []segment
	}{
		{"in order", 100, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 100, "PA")}
		}},
		{"acknowledgement lost", 100, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{part(t, syn, a, 0, 100, "PA")}
		}},
		{"acknowledgement thrice", 100, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), bare(syn, a), bare(syn, a), part(t, syn, a, 0, 100, "PA")}
		}},
		{"one byte", 1, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 1, "PA")}
		}},
		{"one byte at a time", 5, false, func(t *testing.T, syn, a segment) []segment {
			all := []segment{bare(syn, a)}
			for i := range 5 {
				all = append(all, part(t, syn, a, i, 1, "PA"))
			}
			return all
		}},
		{"several segments", 4000, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 1400, "A"), part(t, syn, a, 1400, 1400, "A"), part(t, syn, a, 2800, 1200, "PA")}
		}},
		{"backwards", 4000, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 2800, 1200, "PA"), part(t, syn, a, 1400, 1400, "A"), part(t, syn, a, 0, 1400, "A")}
		}},
		{"overlapping", 4000, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 1400, "A"), part(t, syn, a, 1000, 1400, "A"), part(t, syn, a, 2000, 1400, "A"), part(t, syn, a, 2700, 1300, "PA")}
		}},
		{"with FIN", 100, true, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 100, "PFA")}
		}},
		{"FIN behind", 100, true, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 100, "PA"), data(syn, a, 100, nil, "FA")}
		}},
		{"FIN before", 100, true, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), data(syn, a, 100, nil, "FA"), part(t, syn, a, 0, 100, "PA")}
		}},
		{"copy of the whole", 100, false, func(t *testing.T, syn, a segment) []segment {
			return []segment{bare(syn, a), part(t, syn, a, 0, 100, "PA"), part(t, syn, a, 0, 100, "PA")}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			versions(t, func(t *testing.T, v6 bool) {
				r := newRig(t, rigConfig{})
				r.setDecide(whole(c.size))
				first(t, r, r.newFake(t, v6), func(syn, a segment) []segment { return c.segments(t, syn, a) }, c.size, c.ended)
				eventually(t, "one connection", func() bool { return r.accepted(t, 0).Made == 1 })
				if s := r.stats(t); s.Forwarded != 1 || s.Invalid != 0 {
					t.Errorf("%+v", s)
				}
				if a := r.accepted(t, 0); a.Tried != 1 || a.Strays != 0 {
					t.Errorf("%+v", a)
				}
			})
		})
	}
}

// The SYN is sent again: the client may take either answer.
func TestRepeatedSYN(t *testing.T) {
	for _, second := range []bool{false, true} {
		r := newRig(t, rigConfig{})
		f := r.newFake(t, false)
		l := listen(t, r.servers[0], all(port), false)
		syn := synOf(4000, 77)
		answers := []segment{f.shake(syn)}
		time.Sleep(20 * time.Millisecond) // the clock in the answer ticks
		answers = append(answers, f.shake(syn))
		a := answers[map[bool]int{true: 1}[second]]
		f.send(bare(syn, a), data(syn, a, 0, ramp(t, 0, 50), "PA"))
		expect(t, "request", accept(t, l), 0, 50)
	}
}

func TestWrongCookies(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		r := newRig(t, rigConfig{})
		f := r.newFake(t, v6)
		syn := synOf(5000, 1)
		a := f.shake(syn)
		before := r.stats(t)
		const tries = 10000
		for i := range tries {
			wrong := data(syn, a, 0, []byte("x"), "PA")
			switch i % 5 {
			case 0:
				wrong.ack += 16 + rand.Uint32N(1<<31)
			case 1:
				wrong.seq += 1 + rand.Uint32N(1<<31)
			case 2:
				wrong.tsecr ^= 1 << rand.IntN(32)
			case 3:
				wrong.port = 5001
			case 4:
				wrong.timestamps = false
			}
			f.send(wrong)
		}
		eventually(t, "all counted", func() bool { return r.stats(t).Invalid-before.Invalid == tries })
		if s := r.stats(t); s.Packets != before.Packets || s.Undecided != 0 {
			t.Errorf("%+v", s)
		}
		// The right one is still good.
		f.send(data(syn, a, 0, []byte("x"), "PA"))
		eventually(t, "the right one counts", func() bool { return r.stats(t).Requests == 1 })
	})
}

// A flood of SYNs leaves nothing behind, and others are served meanwhile.
func TestFlood(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := listen(t, r.servers[0], all(port), false)
	f := r.newFake(t, false)
	const flood = 100000
	frame := f.frame(synOf(1, 1))
	go func() {
		c, err := r.tryDial(r.at(false), 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}()
	for i := range flood {
		frame[14+12], frame[14+13] = 11, byte(i>>16) // from elsewhere; checksums are not looked at
		frame[34], frame[35] = byte(i>>8), byte(i)
		f.sendFrame(frame)
	}
	accept(t, l)
	eventually(t, "all answered", func() bool { return r.stats(t).Answered >= flood })
	if s := r.stats(t); s.Requests != 1 || s.Packets > 2 || s.Completed != 1 { // the second is a FIN
		t.Errorf("%+v", s)
	}
}

// The program's clock is put forward by writing what Install writes.
func (r *rig) passTime(t *testing.T, d time.Duration) {
	t.Helper()
	for _, m := range []cookie.Maps{r.proxy.maps} {
		var which uint32
		var s synproxySetting
		if err := m.Active.Lookup(uint32(0), &which); err != nil {
			t.Fatal(err)
		}
		if err := m.Settings.Lookup(which, &s); err != nil {
			t.Fatal(err)
		}
		s.Offset += uint64(d)
		if err := m.Settings.Put(which, s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOldCookies(t *testing.T) {
	r := newRig(t, rigConfig{})
	f := r.newFake(t, false)
	for i, c := range []struct {
		age   time.Duration
		valid bool
	}{
		{-30 * time.Second, true}, // our clock is behind that of who made it
		{0, true}, {cookie.Period, true}, {2 * cookie.Period, true}, {3 * cookie.Period, false}, {4 * cookie.Period, false}, {8 * cookie.Period, false},
	} {
		syn := synOf(uint16(6000+i), 9)
		a := f.shake(syn)
		before := r.stats(t)
		r.passTime(t, c.age)
		f.send(bare(syn, a))
		r2 := r
		eventually(t, "looked at", func() bool { s := r2.stats(t); return s.Completed+s.Invalid == before.Completed+before.Invalid+1 })
		if valid := r.stats(t).Completed > before.Completed; valid != c.valid {
			t.Errorf("after %v: valid %t", c.age, valid)
		}
		r.passTime(t, -c.age)
	}
}

// A client that gives up while nobody has decided.
func TestResetWhilePending(t *testing.T) {
	r := newRig(t, rigConfig{change: func(c *Config) { c.Patience = time.Minute }})
	r.setDecide(func(Request) Decision { return Decision{Verb: Later} })
	f := r.newFake(t, false)
	syn := synOf(7000, 5)
	a := f.shake(syn)
	f.send(bare(syn, a), data(syn, a, 0, []byte("abc"), "PA"))
	eventually(t, "asked", func() bool { return r.stats(t).Requests == 1 })
	f.send(data(syn, a, 3, nil, "R"))
	eventually(t, "given up", func() bool { return r.stats(t).Aborted == 1 && r.stats(t).Undecided == 0 })
	if err := r.proxy.Decide(f.flow(7000), Decision{Verb: Forward, Node: 1}); err == nil {
		t.Error("a connection that its client has reset was given away")
	}
}

// Strays are dropped, or the stack's, as configured.
func TestStrays(t *testing.T) {
	for _, pass := range []bool{false, true} {
		r := newRig(t, rigConfig{change: func(c *Config) { c.PassStrays = pass }})
		f := r.newFake(t, false)
		f.send(segment{port: 9000, seq: 1, ack: 2, flags: "A", payload: []byte("x"), scale: -1})
		eventually(t, "counted", func() bool { return r.stats(t).Invalid == 1 })
		if _, reset := f.tryReceive(100*time.Millisecond, 9000, func(s segment) bool { return s.flags == "R" }); reset != pass {
			t.Errorf("passed on %t, answered %t", pass, reset)
		}
	}
}
