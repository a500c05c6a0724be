// SPDX-License-Identifier: Apache-2.0

package health

import (
	"strings"
	"testing"
	"time"
)

func start() time.Time { return time.Unix(1_800_000_000, 0) }

func check(t testing.TB, c CheckConfig) *Check {
	t.Helper()
	made, err := NewCheck(c, start(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestRiseAndFall: + is a probe that succeeds, - one that fails; below it the state: u(p), d(own).
func TestRiseAndFall(t *testing.T) {
	for _, tt := range []struct {
		rise, fall     int
		probes, states string
	}{
		{2, 3, "+--+---++-++", "uuuuuudduuuu"},
		{2, 3, "-+-++", "dddd" + "u"},
		{2, 3, "+---+--++", "uuudddd" + "du"},
		{1, 1, "+-+-", "udud"},
		{3, 2, "--+++--", "dddduud"},
		{0, 0, "+--" + "-" + "+" + "+", "uuudd" + "u"}, // defaults: 2 and 3
	} {
		c := check(t, CheckConfig{Rise: tt.rise, Fall: tt.fall})
		var got strings.Builder
		last := Unknown
		for _, p := range tt.probes {
			if changed := c.Result(start(), p == '+', 0.5); changed != (c.State() != last) {
				t.Errorf("%s: after %q: changed %v, %v to %v", tt.probes, got.String(), changed, last, c.State())
			}
			last = c.State()
			got.WriteByte(c.State().String()[0])
		}
		if got.String() != tt.states {
			t.Errorf("rise %d, fall %d: %s: %s, want %s", tt.rise, tt.fall, tt.probes, got.String(), tt.states)
		}
	}
}

// TestDue: an interval from the beginning of a probe, sooner while a change is under way, and spread by the jitter.
func TestDue(t *testing.T) {
	c := check(t, CheckConfig{Interval: 10 * time.Second, Hurry: time.Second, Jitter: 0.2})
	for i, tt := range []struct {
		ok     bool
		random float64
		want   time.Duration
	}{
		{true, 0.5, 10 * time.Second},
		{true, 0, 8 * time.Second},
		{true, 1, 12 * time.Second},
		{false, 0.5, time.Second}, // may be going down
		{false, 1, 1200 * time.Millisecond},
		{false, 0.5, 10 * time.Second}, // is down
		{true, 0.5, time.Second},
		{true, 0.5, 10 * time.Second},
	} {
		c.Result(start(), tt.ok, tt.random)
		if got := c.Due().Sub(start()); (got - tt.want).Abs() > time.Microsecond {
			t.Errorf("probe %d: next after %v, want %v", i, got, tt.want)
		}
	}
	for _, spread := range []float64{0, 0.5, 1} {
		c, err := NewCheck(CheckConfig{Interval: time.Hour}, start(), spread)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Due().Sub(start()); got != time.Duration(spread*float64(time.Second)) {
			t.Errorf("the first probe is due after %v, spread %v", got, spread)
		}
	}
}

func TestCheckConfig(t *testing.T) {
	for want, c := range map[string]CheckConfig{
		"interval: 1ms":       {Interval: time.Millisecond},
		"hurry: 3s":           {Hurry: 3 * time.Second},
		"hurry: 1ms":          {Hurry: time.Millisecond},
		"timeout: -1ns":       {Timeout: -1},
		"rise -1, fall 3":     {Rise: -1},
		"rise 2, fall -1":     {Fall: -1},
		"jitter: 0.7: want a": {Jitter: 0.7},
	} {
		if _, err := NewCheck(c, start(), 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
	c := check(t, CheckConfig{Interval: 100 * time.Millisecond, Jitter: -1})
	if c.Timeout() != 100*time.Millisecond {
		t.Errorf("timeout %v, want the interval", c.Timeout())
	}
	c.Result(start(), true, 1)
	if got := c.Due().Sub(start()); got != 100*time.Millisecond {
		t.Errorf("next after %v without jitter", got)
	}
	if State(7).String() != "state 7" {
		t.Error(State(7))
	}
}

// FuzzCheck compares with what the words say: up after Rise, down after Fall in a row, and nothing in between.
func FuzzCheck(f *testing.F) {
	f.Add(uint8(2), uint8(3), []byte{1, 0, 0, 0, 1, 1})
	f.Fuzz(func(t *testing.T, rise, fall uint8, results []byte) {
		rise, fall = rise%5+1, fall%5+1
		c := check(t, CheckConfig{Rise: int(rise), Fall: int(fall)})
		good, bad, want := 0, 0, Unknown
		for _, b := range results {
			ok := b%2 == 1
			if ok {
				good, bad = good+1, 0
			} else {
				good, bad = 0, bad+1
			}
			switch {
			case ok && (want == Unknown || good >= int(rise)):
				want = Up
			case !ok && (want == Unknown || bad >= int(fall)):
				want = Down
			}
			if c.Result(start(), ok, 0); c.State() != want {
				t.Fatalf("%v after %d good and %d bad, want %v", c.State(), good, bad, want)
			}
		}
	})
}
