// SPDX-License-Identifier: Apache-2.0

package monitor

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/dispatcher/availability"
	"github.com/rehome-net/rehome/dispatcher/load"
	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(play(role))
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{}))
}

const patience = 5 * time.Second

func key(id uint16) vitals.Key {
	return vitals.Key{ID: id, Secret: []byte("sixteen or more bytes of secret")}
}

// stand is a monitor that runs, and what it has told.
type stand struct {
	*Monitor
	changes chan availability.Event
	loads   chan load.Event
	conn    net.Conn
	sealer  *vitals.Sealer
	seq     uint16
	delta   time.Duration // what vectors state
}

func newStand(t *testing.T, c Config) *stand {
	t.Helper()
	s := &stand{changes: make(chan availability.Event, 1000), loads: make(chan load.Event, 1000), delta: 10 * time.Second}
	c.Listen, c.Keys = "127.0.0.1:0", []vitals.Key{key(1)}
	c.Changed = func(e availability.Event) { s.changes <- e }
	c.LoadChanged = func(e load.Event) { s.loads <- e }
	var err error
	if s.Monitor, err = Open(c); err != nil {
		t.Fatal(err)
	}
	if s.conn, err = net.Dial("udp", s.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if s.sealer, err = vitals.NewSealer(key(1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = s.conn.Close()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err == nil {
			t.Error("closed twice")
		}
		s.SetHosts(nil) // of no use any more, and no harm
	})
	return s
}

func (s *stand) send(t *testing.T, b []byte) {
	t.Helper()
	if _, err := s.conn.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (s *stand) beat(t *testing.T, host uint32, flag vitals.Flag, stamp time.Time) []byte {
	t.Helper()
	s.seq++
	b := s.sealer.Append(nil, vitals.Heartbeat{Host: host, Seq: s.seq, Flag: flag, Stamp: vitals.StampOf(stamp)}, time.Now())
	s.send(t, b)
	return b
}

func (s *stand) vector(t *testing.T, host uint32, cpu float64) []byte {
	t.Helper()
	s.seq++
	v := vitals.Vector{Host: host, Seq: s.seq, Interval: s.delta}
	v.Shares[vitals.CPU] = vitals.ShareOf(cpu)
	b := s.sealer.Append(nil, v, time.Now())
	s.send(t, b)
	return b
}

// await waits for a condition that the monitor's thread brings about.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func (s *stand) next(t *testing.T) availability.Event {
	t.Helper()
	select {
	case e := <-s.changes:
		return e
	case <-time.After(patience):
		t.Fatal("no change")
		return availability.Event{}
	}
}

// TestLife: up, application down, planned, down, as it is told and as others see it.
func TestLife(t *testing.T) {
	s := newStand(t, Config{Availability: availability.Config{Interval: 50 * time.Millisecond}})
	s.SetHosts([]uint32{7})
	await(t, "host 7", func() bool { _, ok := s.Host(7); return ok })
	for _, tt := range []struct {
		flag vitals.Flag
		in   time.Duration
		want availability.State
	}{
		{vitals.Available, 0, availability.Up},
		{vitals.ApplicationDown, 0, availability.ApplicationDown},
		{vitals.Available, 0, availability.Up},
		{vitals.PlannedFailure, time.Hour, availability.Draining},
	} {
		s.beat(t, 7, tt.flag, time.Now().Add(tt.in))
		e := s.next(t)
		if h, _ := s.Host(7); e.Host != 7 || e.To != tt.want || h.Status.State != tt.want {
			t.Fatalf("after %v: told %v, seen %v, want %v", tt.flag, e.To, h.Status.State, tt.want)
		}
		if tt.in > 0 {
			if d := time.Until(e.FailsAt); d < 59*time.Minute || d > time.Hour {
				t.Errorf("fails in %v, want an hour", d)
			}
		}
	}
	last := time.Now()
	if e := s.next(t); e.To != availability.Down || e.Cause != "silence" {
		t.Errorf("%+v, want down for silence", e)
	}
	if d := time.Since(last); d < 140*time.Millisecond {
		t.Errorf("down after %v of silence, want 150ms", d)
	}
	s.SetHosts([]uint32{8})
	await(t, "host 8 alone", func() bool {
		_, seven := s.Host(7)
		_, eight := s.Hosts()[8]
		return !seven && eight
	})
}

// TestLoad: vectors are seen, and their absence is.
func TestLoad(t *testing.T) {
	s := newStand(t, Config{Load: load.Config{Interval: 10 * time.Second}})
	s.SetHosts([]uint32{7})
	await(t, "host 7", func() bool { _, ok := s.Host(7); return ok })
	if h, _ := s.Host(7); h.LoadKnown {
		t.Error("a load before any vector")
	}
	s.delta = 100 * time.Millisecond
	s.vector(t, 7, 0.75)
	await(t, "the load", func() bool { h, _ := s.Host(7); return h.LoadKnown && h.Sample.Load == 0.75 })
	select {
	case e := <-s.loads:
		if e.Host != 7 || !e.Failed {
			t.Errorf("%+v, want that host 7's monitor has failed", e)
		}
	case <-time.After(patience):
		t.Fatal("silence of 3 delta goes unnoticed")
	}
	if h, _ := s.Host(7); h.LoadKnown {
		t.Error("the load of a monitor that has failed")
	}
}

// TestRefused: a forged heartbeat, a replayed load vector and what else comes are refused and counted, and change nothing.
func TestRefused(t *testing.T) {
	s := newStand(t, Config{Availability: availability.Config{Interval: 10 * time.Second}})
	s.SetHosts([]uint32{7})
	good := s.beat(t, 7, vitals.Available, time.Now())
	if e := s.next(t); e.To != availability.Up {
		t.Fatalf("%+v", e)
	}
	vector := s.vector(t, 7, 0.5)
	await(t, "the load", func() bool { h, _ := s.Host(7); return h.LoadKnown })

	forged := append([]byte(nil), good...)
	forged[6] = byte(vitals.ApplicationDown)
	stranger, err := vitals.NewSealer(key(2))
	if err != nil {
		t.Fatal(err)
	}
	foreign := stranger.Append(nil, vitals.Heartbeat{Host: 7, Flag: vitals.ApplicationDown}, time.Now())
	yesterday := s.sealer
	if s.sealer, err = vitals.NewSealer(key(1)); err != nil {
		t.Fatal(err)
	}
	old := s.sealer.Append(nil, vitals.Heartbeat{Host: 7, Flag: vitals.ApplicationDown}, time.Now().Add(-24*time.Hour))
	s.sealer = yesterday
	for _, b := range [][]byte{forged, vector, vector, good, foreign, old, {}, []byte("hello"), make([]byte, 2000), append(good[:len(good):len(good)], 0)} {
		s.send(t, b)
	}
	s.beat(t, 99, vitals.Available, time.Now()) // genuine, of a host that is not known
	want := map[string]uint64{"forged": 1, "replayed": 3, "key": 1, "clock": 1, "malformed": 4}
	await(t, "all to be counted", func() bool { return s.Stats().Strangers == 1 })
	if d := cmp.Diff(want, s.Stats().Refused); d != "" {
		t.Errorf("refused (-want +got):\n%s", d)
	}
	if st := s.Stats(); st.Heartbeats != 2 || st.Vectors != 1 {
		t.Errorf("%d heartbeats, %d vectors counted, want 2 and 1", st.Heartbeats, st.Vectors)
	}
	if h, _ := s.Host(7); h.Status.State != availability.Up || h.Sample.Load != 0.5 {
		t.Errorf("host 7 is %v at %v, want what it was", h.Status.State, h.Sample.Load)
	}
	if len(s.changes) > 0 {
		t.Errorf("told %+v", <-s.changes)
	}
	// A new key, and the old one is refused from then on.
	if err := s.SetKeys([]vitals.Key{{ID: 5}}); err == nil {
		t.Error("a bad key is taken")
	}
	if err := s.SetKeys([]vitals.Key{key(2)}); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Refused["key"]
	await(t, "the old key to be refused", func() bool {
		s.beat(t, 7, vitals.Available, time.Now())
		return s.Stats().Refused["key"] > before
	})
}

// TestLateReader: heartbeats that wait in the socket while the monitor's thread is kept busy are not silence.
func TestLateReader(t *testing.T) {
	const interval = 20 * time.Millisecond
	block := make(chan struct{})
	var blocking bool
	c := Config{Availability: availability.Config{Interval: interval}}
	c.Reported = func(uint32, load.Sample) {
		blocking = !blocking
		if blocking {
			<-block
		}
	}
	s := newStand(t, c)
	s.SetHosts([]uint32{7})
	s.beat(t, 7, vitals.Available, time.Now())
	if e := s.next(t); e.To != availability.Up {
		t.Fatalf("%+v", e)
	}
	s.vector(t, 7, 0.5)
	for range 15 { // five times n*d
		s.beat(t, 7, vitals.Available, time.Now())
		time.Sleep(interval)
	}
	s.beat(t, 7, vitals.Available, time.Now())
	close(block)
	await(t, "the monitor to come back", func() bool { return s.Stats().Heartbeats >= 17 })
	if late := s.Stats().Late; late < 10*interval {
		t.Errorf("the longest wait was %v: the thread was not kept busy", late)
	}
	// What comes next is the silence that follows; its beginning is the last arrival.
	e := s.next(t)
	h, _ := s.Host(7)
	if e.To != availability.Down || e.At.Sub(h.Status.Heard) < 3*interval {
		t.Errorf("%v, %v after the last heartbeat arrived", e.To, e.At.Sub(h.Status.Heard))
	}
	if h.Status.Received != 17 {
		t.Errorf("down before %d of 17 heartbeats were read", 17-h.Status.Received)
	}
}

func TestArrival(t *testing.T) {
	now := time.Now()
	last := now.Add(-50 * time.Millisecond)
	for _, tt := range []struct {
		name  string
		stamp time.Time
		want  time.Time
	}{
		{"in between", now.Round(0).Add(-20 * time.Millisecond), now.Add(-20 * time.Millisecond)},
		{"the clock was set back meanwhile", now.Round(0).Add(time.Hour), now},
		{"the clock was set forward meanwhile", now.Round(0).Add(-time.Hour), last},
		{"no stamp", time.Time{}, now},
	} {
		if got := arrival(tt.stamp, last, now); got.Sub(tt.want).Abs() > time.Microsecond {
			t.Errorf("%s: %v, want %v", tt.name, got.Sub(now), tt.want.Sub(now))
		}
	}
}

func TestConfig(t *testing.T) {
	for want, c := range map[string]Config{
		"keys: missing":                {},
		"listen: address nowhere":      {Listen: "nowhere", Keys: []vitals.Key{key(1)}},
		"keys: key 3: secret":          {Keys: []vitals.Key{{ID: 3}}},
		"availability: misses: 1":      {Keys: []vitals.Key{key(1)}, Availability: availability.Config{Misses: 1}},
		"load: misses: -1":             {Keys: []vitals.Key{key(1)}, Load: load.Config{Misses: -1}},
		"cannot assign requested addr": {Listen: "192.0.2.1:0", Keys: []vitals.Key{key(1)}},
	} {
		m, err := Open(c)
		if err == nil {
			_ = m.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}
