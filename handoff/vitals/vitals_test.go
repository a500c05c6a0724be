// SPDX-License-Identifier: Apache-2.0

package vitals

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file")

const golden = "testdata/datagrams.golden"

func at() time.Time { return time.Unix(1_800_000_000, 123_456_789) }

func key() Key { return Key{ID: 258, Secret: []byte("0123456789abcdef0123456789abcdef")} }

func sealer(t testing.TB, k Key) *Sealer {
	t.Helper()
	s, err := NewSealer(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func opener(t testing.TB, keys ...Key) *Opener {
	t.Helper()
	o, err := NewOpener(OpenerConfig{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

type messageCase struct {
	name    string
	message Message
}

// messageCases feed encoding, decoding, the golden file and the fuzzer.
func messageCases() []messageCase {
	return []messageCase{
		{"available", Heartbeat{Host: 7, Seq: 1, Flag: Available, Stamp: StampOf(at())}},
		{"application down", Heartbeat{Host: 0x01020304, Seq: 0xffff, Flag: ApplicationDown, Stamp: 0xfffffffe}},
		{"planned failure", Heartbeat{Host: 1<<32 - 1, Flag: PlannedFailure}},
		{"vector", Vector{
			Host: 7, Seq: 2, Interval: 200 * time.Millisecond, Sessions: 70_000,
			Shares: [Parts]Share{ShareOf(0.95), ShareOf(0.5), 0, 1, Unknown, 10_000},
		}},
		{"vector, nothing known", Vector{
			Host: 1, Interval: MaxInterval, Shares: [Parts]Share{Unknown, Unknown, Unknown, Unknown, Unknown, Unknown},
		}},
	}
}

func open(d Datagram) Message {
	if d.Heartbeat != nil {
		return *d.Heartbeat
	}
	return *d.Vector
}

func TestGolden(t *testing.T) {
	var lines strings.Builder
	for _, tt := range messageCases() {
		fmt.Fprintf(&lines, "%s: %x\n", tt.name, sealer(t, key()).Append(nil, tt.message, at()))
	}
	if *update {
		if err := os.WriteFile(golden, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), lines.String()); d != "" {
		t.Errorf("the format has changed (-want +got):\n%s", d)
	}
}

// TestHeartbeatBody holds the paper's layout, byte by byte.
func TestHeartbeatBody(t *testing.T) {
	h := Heartbeat{Host: 0x01020304, Seq: 0x0506, Flag: PlannedFailure, Stamp: 0x08090a0b}
	want := []byte{1, 2, 3, 4, 5, 6, 3, 8, 9, 10, 11}
	if got := h.appendBody(nil); !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	b := sealer(t, key()).Append(nil, h, at())
	if !bytes.HasPrefix(b, want) || len(b) != HeartbeatSize+sealSize {
		t.Errorf("the body does not stand first, unchanged: % x", b)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, tt := range messageCases() {
		d, err := opener(t, key()).Open(sealer(t, key()).Append(nil, tt.message, at()), at())
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if diff := cmp.Diff(tt.message, open(d)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		if !d.Sent.Equal(at()) {
			t.Errorf("%s: sent %v, want %v", tt.name, d.Sent, at())
		}
	}
}

// TestForged holds that no bit of a datagram can be changed, and none left out.
func TestForged(t *testing.T) {
	for _, tt := range messageCases() {
		good := sealer(t, key()).Append(nil, tt.message, at())
		o := opener(t, key())
		for bit := range 8 * len(good) {
			b := bytes.Clone(good)
			b[bit/8] ^= 1 << (bit % 8)
			if d, err := o.Open(b, at()); err == nil {
				t.Fatalf("%s: bit %d changed: %+v", tt.name, bit, d)
			}
		}
		for n := range len(good) {
			if _, err := o.Open(good[:n], at()); err == nil {
				t.Fatalf("%s: %d of %d bytes are accepted", tt.name, n, len(good))
			}
		}
		if _, err := o.Open(append(bytes.Clone(good), 0), at()); err == nil {
			t.Fatalf("%s: one byte too many is accepted", tt.name)
		}
		if _, err := o.Open(good, at()); err != nil {
			t.Errorf("%s: the genuine one after all those: %v", tt.name, err)
		}
	}
}

func TestRefused(t *testing.T) {
	beat := Heartbeat{Host: 7, Flag: Available}
	other := Key{ID: key().ID, Secret: []byte("another secret of some length")}
	bound := Key{ID: 3, Host: 8, Secret: key().Secret}
	for _, tt := range []struct {
		name   string
		key    Key
		sent   time.Duration
		want   error
		reason string
	}{
		{"wrong secret", other, 0, ErrForged, "forged"},
		{"unknown key", Key{ID: 9, Secret: key().Secret}, 0, ErrKey, "key"},
		{"another host's key", bound, 0, ErrKey, "key"},
		{"too old", key(), -DefaultSkew - 1, ErrClock, "clock"},
		{"of the future", key(), DefaultSkew + 1, ErrClock, "clock"},
		{"just old enough", key(), -DefaultSkew, nil, ""},
		{"a clock that is ahead", key(), DefaultSkew, nil, ""},
	} {
		b := sealer(t, tt.key).Append(nil, beat, at().Add(tt.sent))
		_, err := opener(t, key(), bound).Open(b, at())
		if !errors.Is(err, tt.want) || err != nil && Reason(err) != tt.reason {
			t.Errorf("%s: %v (%s), want %v", tt.name, err, Reason(err), tt.want)
		}
	}
	if Reason(fmt.Errorf("x: %w", ErrMalformed)) != "malformed" || Reason(ErrReplayed) != "replayed" {
		t.Error("Reason does not know its errors")
	}
}

// TestReplayed holds that a datagram counts once: at once, later, after others, under a newer key.
func TestReplayed(t *testing.T) {
	s, o := sealer(t, key()), opener(t, key())
	var sent [][]byte
	for n := range 3 * windowSize {
		b := s.Append(nil, Vector{Host: 7, Seq: uint16(n), Interval: time.Second}, at())
		sent = append(sent, b)
		if _, err := o.Open(b, at()); err != nil {
			t.Fatalf("datagram %d: %v", n, err)
		}
		for i, old := range sent {
			if _, err := o.Open(old, at()); !errors.Is(err, ErrReplayed) {
				t.Fatalf("datagram %d again after %d: %v", i, n, err)
			}
		}
	}
	newer := Key{ID: 5, Secret: []byte("the key that comes after it")}
	if err := o.SetConfig(OpenerConfig{Keys: []Key{key(), newer}}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(sent[len(sent)-1], at()); !errors.Is(err, ErrReplayed) {
		t.Errorf("after a change of keys: %v", err)
	}
	rotated := sealer(t, newer).Append(nil, Vector{Host: 7, Interval: time.Second}, at().Add(time.Second))
	if _, err := o.Open(rotated, at()); err != nil {
		t.Errorf("under the new key: %v", err)
	}
	if err := o.SetConfig(OpenerConfig{Keys: []Key{newer}}); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(s.Append(nil, Heartbeat{Host: 7, Flag: Available}, at()), at()); !errors.Is(err, ErrKey) {
		t.Errorf("under a key that was taken away: %v", err)
	}
}

// TestOvertaken holds that datagrams may overtake each other within the window, and that kinds and hosts do not disturb one another.
func TestOvertaken(t *testing.T) {
	s, o := sealer(t, key()), opener(t, key())
	var sent [][]byte
	for n := range windowSize {
		sent = append(sent, s.Append(nil, Heartbeat{Host: 7, Seq: uint16(n), Flag: Available}, at()))
	}
	late := sealer(t, key()).Append(nil, Vector{Host: 7, Interval: time.Second}, at().Add(-time.Second))
	for i := range sent {
		if _, err := o.Open(sent[len(sent)-1-i], at()); err != nil {
			t.Errorf("%d places late: %v", i, err)
		}
	}
	if _, err := o.Open(late, at()); err != nil {
		t.Errorf("a vector behind heartbeats: %v", err)
	}
	elsewhere := sealer(t, key()).Append(nil, Heartbeat{Host: 8, Flag: Available}, at().Add(-time.Second))
	if _, err := o.Open(elsewhere, at()); err != nil {
		t.Errorf("another host's: %v", err)
	}
}

// TestWindow compares with a set that forgets nothing: what was taken is never taken again, and of the newest none is refused.
func TestWindow(t *testing.T) {
	w, taken := &window{}, map[int64]bool{}
	x, newest := uint64(1), int64(0)
	for range 100_000 {
		x = x*6364136223846793005 + 1442695040888963407
		n := newest + int64(x>>58) - 40
		fresh := w.add(n)
		if fresh && taken[n] {
			t.Fatalf("%d is taken twice", n)
		}
		if !fresh && n > newest {
			t.Fatalf("%d is refused, the newest is %d", n, newest)
		}
		taken[n] = taken[n] || fresh
		newest = max(newest, n)
	}
}

// TestSealerNeverRepeats: a clock that stands or goes back makes no datagram look replayed.
func TestSealerNeverRepeats(t *testing.T) {
	s, o := sealer(t, key()), opener(t, key())
	for n, now := range []time.Time{at(), at(), at().Add(-time.Second), at()} {
		if _, err := o.Open(s.Append(nil, Heartbeat{Host: 1, Flag: Available}, now), at()); err != nil {
			t.Errorf("datagram %d: %v", n, err)
		}
	}
}

func TestStamps(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Millisecond, -time.Second, time.Hour, MaxPlan, -MaxPlan} {
		// 24 days from a moment shortly before stamps come round.
		for _, near := range []time.Time{at(), time.UnixMilli(1<<32*400 - 5), time.UnixMilli(0)} {
			want := near.Add(ahead).Truncate(time.Millisecond)
			if got := TimeOf(StampOf(want), near); !got.Equal(want) {
				t.Errorf("%v from %v: %v, want %v", ahead, near, got, want)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	v := Vector{Shares: [Parts]Share{ShareOf(0.3), ShareOf(0.9), Unknown, ShareOf(0.5), Unknown, Unknown}}
	for _, tt := range []struct {
		name    string
		weights Weights
		want    float64
		ok      bool
	}{
		{"even: the fullest, memory", EvenWeights(), 0.9, true},
		{"memory counts half: 0.45, so I/O", Weights{1, 0.5, 1, 1, 1, 1}, 0.5, true},
		{"processors only", Weights{CPU: 1}, 0.3, true},
		{"only what is unknown", Weights{Network: 1}, 0, false},
	} {
		if got, ok := v.Load(tt.weights); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %v %v, want %v %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

func TestReadKeys(t *testing.T) {
	secret := strings.Repeat("a5", 16)
	got, err := ReadKeys(strings.NewReader("# rotated in May\n\n1 * " + secret + "\n  2 7 " + secret + "  \n"))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := hex.DecodeString(secret)
	if d := cmp.Diff([]Key{{ID: 1, Secret: raw}, {ID: 2, Host: 7, Secret: raw}}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for text, want := range map[string]string{
		"":                  "no key",
		"1 *":               "line 1: 2 fields",
		"70000 * " + secret: "id: want a number",
		"1 0 " + secret:     "host: want a host's number or *",
		"1 x " + secret:     "host: want",
		"1 * zz":            "hexadecimal",
		"1 * aabb":          "secret of 2 bytes",
		"\n1 * " + secret + secret + secret + secret + secret: "line 2: key 1: secret of 80 bytes",
		"1 * " + secret + "\n1 * " + secret:                   "line 2: key 1 stands twice",
	} {
		if _, err := ReadKeys(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		} else if strings.Contains(err.Error(), "a5a5") {
			t.Errorf("%q: the error tells the secret", text)
		}
	}
}

func TestOpenerConfig(t *testing.T) {
	for name, c := range map[string]OpenerConfig{
		"no key":       {},
		"skew":         {Keys: []Key{key()}, Skew: -1},
		"stands twice": {Keys: []Key{key(), key()}},
		"secret of 1":  {Keys: []Key{{Secret: []byte{1}}}},
	} {
		if _, err := NewOpener(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
		o := opener(t, key())
		if err := o.SetConfig(c); err == nil {
			t.Errorf("SetConfig takes %q", name)
		}
	}
	if _, err := NewSealer(Key{}); err == nil {
		t.Error("a key without secret is taken")
	}
}

func FuzzOpen(f *testing.F) {
	for _, tt := range messageCases() {
		f.Add(sealer(f, key()).Append(nil, tt.message, at()))
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := opener(t, key()).Open(b, at()); err == nil {
			// Only what Append makes is genuine: the secret is not in the corpus, so this is one of the seeds.
			d, _ := parse(b)
			if !bytes.Equal(d.signed[:len(d.signed)-(sealSize-macSize)], d.message.appendBody(nil)) {
				t.Errorf("% x is not what its message encodes to", b)
			}
		}
	})
}

// FuzzBodies holds that what parses encodes to the same bytes again.
func FuzzBodies(f *testing.F) {
	for _, tt := range messageCases() {
		f.Add(tt.message.appendBody(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := ParseHeartbeat(b); err == nil && !bytes.Equal(h.appendBody(nil), b) {
			t.Errorf("heartbeat % x became % x", b, h.appendBody(nil))
		}
		if v, err := ParseVector(b); err == nil && !bytes.Equal(v.appendBody(nil), b) {
			t.Errorf("vector % x became % x", b, v.appendBody(nil))
		}
	})
}

func FuzzReadKeys(f *testing.F) {
	f.Add("1 * " + strings.Repeat("a5", 16))
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := ReadKeys(strings.NewReader(text))
		if err == nil {
			if _, err := NewOpener(OpenerConfig{Keys: keys}); err != nil {
				t.Errorf("%q is read, and not good for an opener: %v", text, err)
			}
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	s, o := sealer(b, key()), opener(b, key())
	buf := make([]byte, 0, MaxSize)
	b.ReportAllocs()
	for b.Loop() {
		buf = s.Append(buf[:0], Heartbeat{Host: 7, Flag: Available}, at())
		if _, err := o.Open(buf, at()); err != nil {
			b.Fatal(err)
		}
	}
}
