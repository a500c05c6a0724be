// SPDX-License-Identifier: Apache-2.0

package cookie

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/tcprepair"
)

var (
	flow4 = tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:443"), netip.MustParseAddrPort("192.0.2.7:40312"))
	flow6 = tcprepair.NewFlow(netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::7]:40312"))
	noon  = time.Unix(1_700_000_000, 0)
)

func echoOf(o Offer, a Answer) Echo {
	return Echo{Sequence: o.Sequence + 1, Acknowledgement: a.Sequence + 1, Timestamps: o.Timestamps, Timestamp: a.Timestamp}
}

func TestRecall(t *testing.T) {
	key := Secret{1}
	for _, flow := range []tcprepair.Flow{flow4, flow6} {
		for bits := range 16 {
			for _, mss := range []uint16{0, 1, 536, 1220, 1300, 1399, 1440, 1460, 8940, 65495} {
				o := Offer{
					Sequence: rand.Uint32(), MSS: mss, Timestamps: bits&1 != 0, SACK: bits&2 != 0, ECN: bits&4 != 0, WindowScaling: bits&8 != 0,
				}
				if o.WindowScaling {
					o.Scale = uint8(rand.IntN(15))
				}
				want := o
				smallest := uint16(536)
				if flow == flow6 {
					smallest = 1220
				}
				if mss == 0 {
					want.MSS = smallest
				}
				got, ok := Recall(flow, echoOf(o, Seal(key, flow, o, noon, rand.Uint32())), noon, key)
				if !o.Timestamps {
					// One of four, and none larger than asked for, if there is such a one.
					if got.MSS > max(mss, smallest) {
						t.Errorf("%v became %v", o, got)
					}
					want = Offer{Sequence: o.Sequence, MSS: got.MSS}
				}
				if diff := cmp.Diff(want, got); diff != "" || !ok {
					t.Errorf("%v, valid %t (-want +got)\n%s", o, ok, diff)
				}
			}
		}
	}
}

func TestRecallAge(t *testing.T) {
	o := Offer{MSS: 1400, Timestamps: true}
	start := time.Unix(0, int64(Period)*50_000_000) // the beginning of a period
	a := Seal(Secret{1}, flow4, o, start, 0)
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true},
		{-time.Second, true},
		{-Period, true},
		{-Period - 1, false},
		{Period, true},
		{3*Period - 1, true},
		{3 * Period, false},
		{4 * Period, false},
		{5 * Period, false},
		{100 * Period, false},
	} {
		if _, ok := Recall(flow4, echoOf(o, a), start.Add(c.after), Secret{1}); ok != c.want {
			t.Errorf("after %v: valid %t", c.after, ok)
		}
	}
}

func TestRecallSecrets(t *testing.T) {
	o := Offer{MSS: 1400}
	e := echoOf(o, Seal(Secret{1}, flow4, o, noon, 0))
	for _, c := range []struct {
		keys []Secret
		want bool
	}{
		{[]Secret{{1}}, true}, {[]Secret{{2}, {1}}, true}, {[]Secret{{1}, {2}}, true}, {[]Secret{{2}}, false}, {[]Secret{{2}, {3}}, false}, {nil, false},
	} {
		if _, ok := Recall(flow4, e, noon, c.keys...); ok != c.want {
			t.Errorf("%v: valid %t", c.keys, ok)
		}
	}
}

// Whatever is changed, the cookie is wrong.
func TestRecallForged(t *testing.T) {
	o := Offer{Sequence: 100, MSS: 1400, Timestamps: true, SACK: true, WindowScaling: true, Scale: 7}
	e := echoOf(o, Seal(Secret{1}, flow4, o, noon, 0))
	for bit := range 32 {
		for name, change := range map[string]func(*Echo){
			"sequence":        func(e *Echo) { e.Sequence ^= 1 << bit },
			"acknowledgement": func(e *Echo) { e.Acknowledgement ^= 1 << bit },
			"timestamp":       func(e *Echo) { e.Timestamp ^= 1 << bit },
		} {
			forged := e
			change(&forged)
			if got, ok := Recall(flow4, forged, noon, Secret{1}); ok {
				t.Errorf("bit %d of %s changed: %v", bit, name, got)
			}
		}
	}
	for _, other := range []string{"192.0.2.7:40313-198.51.100.1:443", "192.0.2.6:40312-198.51.100.1:443", "192.0.2.7:40312-198.51.100.2:443", "192.0.2.7:40312-198.51.100.1:444"} {
		f, err := tcprepair.ParseFlow(other)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := Recall(f, e, noon, Secret{1}); ok {
			t.Errorf("valid for %v", f)
		}
	}
	e.Timestamps = false
	if _, ok := Recall(flow4, e, noon, Secret{1}); ok {
		t.Error("valid without the timestamp")
	}
}

// A guess is right once in 2^27: one of 2^32 numbers for each of four periods, and eight for each choice of MSS and period.
func TestGuessing(t *testing.T) {
	const guesses = 1 << 20
	right := 0
	for range guesses {
		if _, ok := Recall(flow4, Echo{Sequence: rand.Uint32(), Acknowledgement: rand.Uint32()}, noon, Secret{1}); ok {
			right++
		}
	}
	if right > 2 { // 1/256 is to be expected
		t.Errorf("%d of %d guesses were right", right, guesses)
	}
}

func TestNegotiated(t *testing.T) {
	o := Offer{MSS: 1400, Timestamps: true, SACK: true, WindowScaling: true, Scale: 9}
	a := Seal(Secret{1}, flow4, o, noon, 0xffffffff)
	want := tcprepair.Negotiated{MSS: 1400, Timestamps: true, SACK: true, WindowScaling: true, SendScale: 9, ReceiveScale: 8}
	if diff := cmp.Diff(want, Choice(choiceTimestamps|a.Timestamp&(1<<choiceBits-1)).Negotiated(flow4, 8)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(tcprepair.Negotiated{MSS: 1460}, Choice(3<<24|noScale).Negotiated(flow4, 8)); diff != "" {
		t.Error(diff)
	}
}

func TestFlowCodec(t *testing.T) {
	for _, want := range []tcprepair.Flow{flow4, flow6} {
		b := AppendFlow(nil, want)
		got, err := DecodeFlow(b)
		if err != nil || got != want || len(b) != FlowSize {
			t.Errorf("%v became %v, %v", want, got, err)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, FlowSize-1), make([]byte, FlowSize)} {
		if f, err := DecodeFlow(b); err == nil {
			t.Errorf("%d bytes became %v", len(b), f)
		}
	}
}

func TestSecretIsSecret(t *testing.T) {
	p := Parameters{Secret: Secret{0xab, 0xcd}, Also: Secret{0xef}}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if s := fmt.Sprintf(format, p); strings.Contains(s, "ab") || strings.Contains(s, "171") || strings.Contains(s, "ef,") {
			t.Errorf("%s shows it: %s", format, s)
		}
	}
}

func FuzzRecall(f *testing.F) {
	f.Add(uint32(1), uint32(2), uint32(3), true, int64(5))
	f.Fuzz(func(t *testing.T, sequence, acknowledgement, timestamp uint32, timestamps bool, now int64) {
		o, ok := Recall(flow6, Echo{Sequence: sequence, Acknowledgement: acknowledgement, Timestamp: timestamp, Timestamps: timestamps}, time.Unix(0, now), Secret{1})
		if ok && (o.Sequence != sequence-1 || o.Timestamps != timestamps) {
			t.Errorf("%v", o)
		}
	})
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(append(AppendFlow(nil, flow4), make([]byte, 16)...))
	f.Add(append(AppendFlow(nil, flow6), make([]byte, 16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeReport(b); err == nil && !r.Flow.Local.Addr().IsValid() {
			t.Errorf("%+v", r)
		}
	})
}
