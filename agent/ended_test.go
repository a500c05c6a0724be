// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/sockops"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// fakeEnds is what a kernel reports, and what it still has of each connection.
type fakeEnds struct {
	batches chan []sockops.End
	broken  chan error
	closed  chan struct{}
	once    sync.Once
	missed  uint64

	mu       sync.Mutex
	states   map[tcprepair.Flow]tcprepair.State
	services []netip.AddrPort
	err      error
}

func newFakeEnds() *fakeEnds {
	return &fakeEnds{batches: make(chan []sockops.End), broken: make(chan error), closed: make(chan struct{}), states: make(map[tcprepair.Flow]tcprepair.State)}
}

func (f *fakeEnds) Read(ends []sockops.End) ([]sockops.End, error) {
	select {
	case b := <-f.batches:
		return append(ends, b...), nil
	case err := <-f.broken:
		return ends, err
	case <-f.closed:
		return ends, os.ErrClosed
	}
}

func (f *fakeEnds) Lost() uint64 { return f.missed }

func (f *fakeEnds) SetServices(all []netip.AddrPort) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.services = all
	return f.err
}

func (f *fakeEnds) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func (f *fakeEnds) state(flow tcprepair.Flow) (tcprepair.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[flow], f.err
}

func (f *fakeEnds) set(flow int, s tcprepair.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states[testFlow(flow)] = s
}

// report says that flows ended out of a state.
func (f *fakeEnds) report(from tcprepair.State, flows ...int) {
	var b []sockops.End
	for _, i := range flows {
		b = append(b, sockops.End{Flow: testFlow(i), From: from})
	}
	f.batches <- b
}

// told runs ends with a fake kernel, and returns what the entry b hears.
type told struct {
	*fakeEnds
	e    *engine
	mu   sync.Mutex
	got  []wire.Ended
	stop func()
}

func newTold(t *testing.T) *told {
	t.Helper()
	r := &told{fakeEnds: newFakeEnds(), e: testEngine(t, "b", "a", "b")}
	near, far := net.Pipe()
	p := r.e.peers["b"]
	p.link = wire.NewLink(near)
	link := wire.NewLink(far)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			f, _, err := link.Receive()
			if err != nil {
				return
			}
			if m, ok := f.Message.(*wire.Ended); ok {
				r.mu.Lock()
				r.got = append(r.got, *m)
				r.mu.Unlock()
			}
		}
	})
	all.Go(func() {
		for {
			select {
			case ev := <-r.e.events:
				ev(r.e)
				r.e.flush()
			case <-ctx.Done():
				close(r.e.stopped)
				return
			}
		}
	})
	all.Go(func() {
		if err := newEnds(r.e, r, r).run(ctx); err != nil {
			t.Error(err)
		}
	})
	r.stop = func() {
		cancel()
		_, _ = p.link.Close(), link.Close()
		all.Wait()
	}
	return r
}

// expect checks what the entry has heard since the last call.
func (r *told) expect(t *testing.T, when string, flows ...int) {
	t.Helper()
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var got, want []string
	for _, m := range r.got {
		got = append(got, m.Flow.String())
	}
	for _, i := range flows {
		want = append(want, testFlow(i).String())
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("%s the entry hears\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	r.got = nil
}

func (r *told) inEngine(f func(e *engine)) { r.e.ask(context.Background(), f) }

// metric returns the value of a counter, added up over those labels that have one of the values (or all).
func metric(t testing.TB, e *engine, name string, values ...string) (sum float64) {
	t.Helper()
	families, err := e.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			matches := len(values) == 0
			for _, l := range m.GetLabel() {
				matches = matches || slices.Contains(values, l.GetValue())
			}
			if matches {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// tellings returns how many ends an engine has told, and not told.
func tellings(t testing.TB, e *engine) (told, untold float64) {
	t.Helper()
	return metric(t, e, "rehome_ended_total", "told"), metric(t, e, "rehome_ended_total", "untold")
}

func TestEndsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		r.report(tcprepair.LastAck, 1, 2)
		r.expect(t, "at once")
		time.Sleep(1100 * time.Millisecond)
		r.expect(t, "when no client can have been that fast", 1, 2)
		r.report(tcprepair.Established, 3, 8, 9)
		r.set(8, tcprepair.Established) // the client's port again
		r.set(9, stateTimeWait)         // and over already
		time.Sleep(1100 * time.Millisecond)
		r.expect(t, "after resets", 3)
		// Of these the kernel has: nothing, TIME_WAIT for longer, a half that waits, another connection.
		r.report(tcprepair.FinWait2, 4, 5, 6, 7)
		r.set(5, stateTimeWait)
		r.set(6, tcprepair.FinWait2)
		r.set(7, tcprepair.Established)
		time.Sleep(64 * time.Second)
		r.expect(t, "while the client's last packets are answered")
		time.Sleep(2 * time.Second)
		r.expect(t, "after TIME_WAIT", 4)
		r.set(5, stateNone)
		r.set(6, stateNone)
		r.set(7, stateNone)
		time.Sleep(66 * time.Second)
		r.expect(t, "when the rest is gone", 5, 6)
		time.Sleep(time.Hour)
		r.expect(t, "later")
		if told, untold := tellings(t, r.e); told != 6 || untold != 0 {
			t.Errorf("%v told, %v untold", told, untold)
		}
	})
}

// TestEndsAfterFailures has the kernel fail again and again: what ends later is told all the same.
func TestEndsAfterFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		for i := range 20 {
			begin := time.Now()
			r.broken <- unix.ENOBUFS // somebody reads
			if took := time.Since(begin); took > longestEndPause {
				t.Fatalf("failure %d is found after %v", i, took)
			}
		}
		begin := time.Now()
		r.report(tcprepair.LastAck, 1)
		if took := time.Since(begin); took != longestEndPause {
			t.Errorf("the next look is after %v, want %v", took, longestEndPause)
		}
		time.Sleep(1100 * time.Millisecond)
		r.expect(t, "after failures", 1)
		r.broken <- unix.EINTR // as if it were the first
		begin = time.Now()
		r.report(tcprepair.LastAck, 2)
		if took := time.Since(begin); took != 2*endPause {
			t.Errorf("the next look is after %v, want %v", took, 2*endPause)
		}
		time.Sleep(1100 * time.Millisecond)
		r.expect(t, "after another failure", 2)
	})
}

// TestEndsWithoutPause has connections end all the time: that puts off nothing.
func TestEndsWithoutPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		start := time.Now()
		n := 0
		for time.Since(start) < 3*time.Second {
			n++
			r.report(tcprepair.LastAck, n)
		}
		synctest.Wait()
		told, untold := tellings(t, r.e)
		// What ended in the last second is still to come.
		if least := float64(n) * 0.6; told < least || untold != 0 {
			t.Errorf("%v of %d told, %v not", told, n, untold)
		}
	})
}

// TestEndsOfMovingFlows sees connections end that are being moved, here and away: the entry hears of them when that is over.
func TestEndsOfMovingFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		r.inEngine(func(e *engine) {
			e.moving[testFlow(1)] = &source{}
			e.taking[testFlow(2)] = &target{}
		})
		r.report(tcprepair.Established, 1, 2, 3)
		time.Sleep(10 * time.Second)
		r.expect(t, "meanwhile", 3)
		r.inEngine(func(e *engine) {
			clear(e.moving)
			clear(e.taking)
		})
		r.set(2, tcprepair.Established) // it has come back
		time.Sleep(2 * time.Second)
		r.expect(t, "after the move", 1)
	})
}

// TestEndsWithoutEntry loses the link to the entry: nothing waits for it.
func TestEndsWithoutEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		var link *wire.Link
		r.inEngine(func(e *engine) { link, e.peers["b"].link = e.peers["b"].link, nil })
		r.missed = 5
		r.report(tcprepair.LastAck, 1, 2)
		time.Sleep(2 * time.Second)
		r.expect(t, "without a link")
		r.inEngine(func(e *engine) {
			if n := len(e.peers["b"].waiting); n != 0 {
				t.Errorf("%d frames wait", n)
			}
			e.peers["b"].link = link
		})
		if _, untold := tellings(t, r.e); untold != 7 {
			t.Errorf("%v untold, want 5 that the kernel had no room for, and 2", untold)
		}
		r.report(tcprepair.LastAck, 3)
		time.Sleep(2 * time.Second)
		r.expect(t, "with a link", 3)
	})
}

// TestEndsUnknown cannot find out whether a client has used its port again: then nothing is said.
func TestEndsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newTold(t)
		defer r.stop()
		r.err = errors.New("no answer")
		r.report(tcprepair.FinWait2, 1)
		time.Sleep(2 * time.Minute)
		r.expect(t, "in the end")
		if _, untold := tellings(t, r.e); untold != 1 {
			t.Errorf("%v untold", untold)
		}
	})
}

// TestSlowEntry does not read: what waits for it is bounded.
func TestSlowEntry(t *testing.T) {
	e := testEngine(t, "b", "a", "b")
	near, far := net.Pipe()
	defer far.Close()
	p := e.peers["b"]
	p.link = wire.NewLink(near)
	defer p.link.Close()
	const n = 100000
	for i := range n {
		e.tellEnded(endedFlow{flow: testFlow(i), entry: "b"})
	}
	if b := p.link.Backlog(); b > maxEndedBacklog+4096 {
		t.Errorf("%d bytes wait", b)
	}
	told, untold := tellings(t, e)
	if told == 0 || untold == 0 || told+untold != n {
		t.Errorf("%v told, %v untold", told, untold)
	}
}

func TestEntries(t *testing.T) {
	c := Config{Services: []ServiceConfig{
		{Name: "one", Entry: "x", Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")}},
		{Name: "two", Entry: "y", Addresses: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:81")}},
	}}
	got := c.entries()
	for at, want := range map[string]string{"10.0.0.1:80": "x", "[fd00::1]:80": "x", "10.0.0.1:81": "y", "10.0.0.1:82": ""} {
		if got[netip.MustParseAddrPort(at)] != want {
			t.Errorf("%s: %q, want %q", at, got[netip.MustParseAddrPort(at)], want)
		}
	}
}
