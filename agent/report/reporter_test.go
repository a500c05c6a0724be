// SPDX-License-Identifier: Apache-2.0

package report

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// TestMain is also the program of the process that a Process starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveArgument {
		if err := Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{}))
}

const serveArgument = "serve-report"

const patience = 5 * time.Second

func key() vitals.Key { return vitals.Key{ID: 1, Secret: []byte("sixteen or more bytes of secret")} }

// dispatcher hears what a reporter says.
type dispatcher struct {
	t      *testing.T
	conn   *net.UDPConn
	opener *vitals.Opener
}

func newDispatcher(t *testing.T, address string) *dispatcher {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	opener, err := vitals.NewOpener(vitals.OpenerConfig{Keys: []vitals.Key{key()}})
	if err != nil {
		t.Fatal(err)
	}
	return &dispatcher{t, conn, opener}
}

func (d *dispatcher) addr() netip.AddrPort {
	return netip.MustParseAddrPort(d.conn.LocalAddr().String())
}

func (d *dispatcher) next() vitals.Datagram {
	d.t.Helper()
	if err := d.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.t.Fatal(err)
	}
	b := make([]byte, 2*vitals.MaxSize)
	n, err := d.conn.Read(b)
	if err != nil {
		d.t.Fatal(err)
	}
	got, err := d.opener.Open(b[:n], time.Now())
	if err != nil {
		d.t.Fatal(err)
	}
	return got
}

// beat returns the next heartbeat, vector the next load vector.
func (d *dispatcher) beat() vitals.Heartbeat {
	d.t.Helper()
	for {
		if got := d.next(); got.Heartbeat != nil {
			return *got.Heartbeat
		}
	}
}

func (d *dispatcher) vector() vitals.Vector {
	d.t.Helper()
	for {
		if got := d.next(); got.Vector != nil {
			return *got.Vector
		}
	}
}

// until returns the first heartbeat with a flag.
func (d *dispatcher) until(flag vitals.Flag) vitals.Heartbeat {
	d.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if h := d.beat(); h.Flag == flag {
			return h
		}
	}
	d.t.Fatalf("no heartbeat says %v", flag)
	return vitals.Heartbeat{}
}

// start runs a reporter until the returned function is called, or the test ends.
func start(t *testing.T, c Config) (r *Reporter, stop func()) {
	t.Helper()
	c.Host, c.Key = 7, key()
	r, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

// TestHeartbeats: one each interval, numbered, and the last one says that the host is gone.
func TestHeartbeats(t *testing.T) {
	d4, d6 := newDispatcher(t, "127.0.0.1:0"), newDispatcher(t, "[::1]:0")
	const interval = 20 * time.Millisecond
	r, stop := start(t, Config{Dispatchers: []netip.AddrPort{d4.addr(), d6.addr()}, Interval: interval, LoadInterval: time.Minute})
	first := d4.beat()
	begin := time.Now()
	const beats = 25
	last := first
	for range beats {
		h := d4.beat()
		if h.Host != 7 || h.Flag != vitals.Available || h.Seq != last.Seq+1 {
			t.Fatalf("%+v after %+v", h, last)
		}
		if age := time.Since(vitals.TimeOf(h.Stamp, time.Now())); age < 0 || age > patience {
			t.Fatalf("sent %v ago, by its stamp", age)
		}
		last = h
	}
	if took := time.Since(begin); took < (beats-2)*interval {
		t.Errorf("%d heartbeats in %v, want one in %v", beats, took, interval)
	}
	if h := d6.beat(); h.Seq != first.Seq {
		t.Errorf("%+v over IPv6, want %+v", h, first)
	}
	stop()
	if h := d4.until(vitals.PlannedFailure); time.Since(vitals.TimeOf(h.Stamp, time.Now())) < 0 {
		t.Errorf("%+v at the end, want a failure at once", h)
	}
	if s := r.Stats(); s.Heartbeats < 2*beats || s.Failed > 0 {
		t.Errorf("%+v", s)
	}
	r.SetDown("web", true) // of no use any more, and no harm
	if err := r.Close(); err == nil {
		t.Error("closed twice")
	}
}

// TestUrgent: what dispatchers must know they hear at once, long before the next heartbeat is due.
func TestUrgent(t *testing.T) {
	d := newDispatcher(t, "127.0.0.1:0")
	r, _ := start(t, Config{Dispatchers: []netip.AddrPort{d.addr()}, Interval: time.Minute, LoadInterval: time.Minute})
	if h := d.beat(); h.Flag != vitals.Available {
		t.Fatalf("%+v", h)
	}
	at := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	for _, step := range []struct {
		do   func()
		want vitals.Flag
	}{
		{func() { r.SetDown("web", true) }, vitals.ApplicationDown},
		{func() { r.SetDown("mail", true) }, vitals.ApplicationDown},
		{func() { r.SetDown("web", false) }, vitals.ApplicationDown},
		{func() { r.SetDown("mail", true) }, 0}, // nothing new
		{func() { r.SetDown("mail", false) }, vitals.Available},
		{func() { r.Announce(at) }, vitals.PlannedFailure},
		{func() { r.Announce(at) }, 0},
		{func() { r.Retract() }, vitals.Available},
	} {
		begin := time.Now()
		step.do()
		if step.want == 0 {
			continue
		}
		h := d.beat()
		if h.Flag != step.want || time.Since(begin) > time.Second {
			t.Fatalf("%+v after %v, want %v at once", h, time.Since(begin), step.want)
		}
		if h.Flag == vitals.PlannedFailure && !vitals.TimeOf(h.Stamp, time.Now()).Equal(at) {
			t.Errorf("fails at %v, want %v", vitals.TimeOf(h.Stamp, time.Now()), at)
		}
	}
}

// TestVectors: the load comes, with what applications say.
func TestVectors(t *testing.T) {
	d := newDispatcher(t, "127.0.0.1:0")
	r, _ := start(t, Config{Dispatchers: []netip.AddrPort{d.addr()}, Interval: time.Minute, LoadInterval: MinLoadInterval})
	first := d.vector()
	if first.Host != 7 || first.Interval != MinLoadInterval || first.Shares[vitals.Application] != vitals.Unknown {
		t.Errorf("%+v", first)
	}
	if _, ok := first.Shares[vitals.Memory].Float(); !ok {
		t.Errorf("memory is not known: %+v", first)
	}
	r.SetLoad("web", 0.25)
	r.SetLoad("mail", 0.5)
	r.SetSessions(1234)
	last := first
	for last.Shares[vitals.Application] != vitals.ShareOf(0.5) || last.Sessions != 1234 {
		v := d.vector()
		if v.Seq != last.Seq+1 || v.Seq-first.Seq > 100 {
			t.Fatalf("%+v after %+v", v, last)
		}
		last = v
	}
	r.SetLoad("mail", math.NaN())
	for last.Shares[vitals.Application] != vitals.ShareOf(0.25) {
		if last = d.vector(); last.Seq-first.Seq > 200 {
			t.Fatalf("%+v: mail's load is still told", last)
		}
	}
}

// TestWatch: an application whose listener goes is down, and up again with it.
func TestWatch(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(ln.Addr().String())
	d := newDispatcher(t, "127.0.0.1:0")
	start(t, Config{
		Dispatchers: []netip.AddrPort{d.addr()}, Interval: 20 * time.Millisecond, LoadInterval: MinLoadInterval, Watch: []netip.AddrPort{at},
	})
	d.until(vitals.Available)
	_ = ln.Close()
	d.until(vitals.ApplicationDown)
	if ln, err = net.Listen("tcp", at.String()); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d.until(vitals.Available)
}

func TestConfig(t *testing.T) {
	good := Config{Host: 7, Dispatchers: addresses("192.0.2.1:7072"), Key: key()}
	if r, err := New(good); err != nil {
		t.Error(err)
	} else if err := r.Close(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"host: missing":         func(c *Config) { c.Host = 0 },
		"dispatchers: missing":  func(c *Config) { c.Dispatchers = nil },
		"dispatchers: 0.0.0.0":  func(c *Config) { c.Dispatchers = addresses("0.0.0.0:1") },
		"key 3 is host 8's":     func(c *Config) { c.Key = vitals.Key{ID: 3, Host: 8, Secret: key().Secret} },
		"key 1: secret of 0":    func(c *Config) { c.Key.Secret = nil },
		"interval: 1µs":         func(c *Config) { c.Interval = time.Microsecond },
		"load_interval: 10ms":   func(c *Config) { c.LoadInterval = 10 * time.Millisecond },
		"load_interval: 2m0s":   func(c *Config) { c.LoadInterval = 2 * time.Minute },
		"interval: 2m0s: want ": func(c *Config) { c.Interval = 2 * time.Minute },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
