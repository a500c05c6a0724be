// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/reqsk"
	"github.com/rehome-net/rehome/handoff/wire"
	"github.com/rehome-net/rehome/tcprepair"
)

// fakeInjector makes nothing.
type fakeInjector struct{}

func (fakeInjector) Inject(*tcprepair.Snapshot) error { return errors.New("not in this test") }

func (fakeInjector) Close() error { return nil }

// opener is a host whose kernel cannot do it while err is not nil.
type opener struct {
	err   error
	tries int
}

// injectingEngine is an engine of such a host, and the link of its dispatcher c.
func injectingEngine(t *testing.T, err error) (*engine, *opener, *incoming, *wire.Link) {
	t.Helper()
	e := testEngine(t, "c", "a")
	e.addresses, e.addressesAt = map[netip.Addr]bool{testAddress().Addr(): true}, time.Now().Add(time.Hour)
	o := &opener{err: err}
	e.inject.open = func(*engine) (injector, error) {
		o.tries++
		if o.err != nil {
			return nil, o.err
		}
		return fakeInjector{}, nil
	}
	in, link := sourceLink(t, e, 0)
	return e, o, in, link
}

// opened lets the engine hear how a try ended.
func opened(t *testing.T, e *engine) {
	t.Helper()
	select {
	case ev := <-e.events:
		ev(e)
		e.flush()
	case <-time.After(10 * time.Second):
		t.Fatal("nobody tries")
	}
}

func handoffTo(i int) *wire.Handoff {
	return &wire.Handoff{Flow: testFlow(i), Service: "s", Delivery: wire.DeliverUnmodified, Epoch: 1, Limit: time.Second}
}

// expectRefusal reads the answer to a handoff.
func expectRefusal(t *testing.T, link *wire.Link, id uint64, want string) {
	t.Helper()
	f, _, err := link.Receive()
	r, ok := f.Message.(*wire.Refuse)
	if err != nil || !ok || f.ID != id || !strings.Contains(r.Reason, want) {
		t.Errorf("handoff %d is answered with %d %+v, %v; want a refusal with %q", id, f.ID, f.Message, err, want)
	}
}

// expectAbility reads what the dispatcher is told of unmodified servers.
func expectAbility(t *testing.T, link *wire.Link, want string) {
	t.Helper()
	for {
		f, _, err := link.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m, ok := f.Message.(*wire.Unmodified); ok {
			if !strings.Contains(m.Unable, want) || (m.Unable == "") != (want == "") {
				t.Errorf("the dispatcher hears %q, want %q", m.Unable, want)
			}
			return
		}
	}
}

// TestInjectorIsTriedBesideTheEngine hands connections to a host whose kernel is too old: they wait for one try together, and what it has found
// is remembered.
func TestInjectorIsTriedBesideTheEngine(t *testing.T) {
	e, o, in, link := injectingEngine(t, errors.New("needs Linux 6.9"))
	for id := range uint64(3) {
		e.handedOff(in, id+1, handoffTo(int(id)))
	}
	if len(e.queued) != 0 || len(e.takers) != 0 {
		t.Fatal("a connection did not wait")
	}
	opened(t, e)
	for id := range uint64(3) {
		expectRefusal(t, link, id+1, "needs Linux 6.9")
	}
	e.handedOff(in, 4, handoffTo(4))
	e.flush()
	expectRefusal(t, link, 4, "needs Linux 6.9")
	if o.tries != 1 {
		t.Errorf("%d tries for 4 connections within a moment", o.tries)
	}
	// Later it is tried again, and may succeed.
	e.inject.again, o.err = time.Now(), nil
	e.handedOff(in, 5, handoffTo(5))
	opened(t, e)
	if made, err := e.injector(); made == nil || err != nil || o.tries != 2 {
		t.Errorf("after %d tries: %v, %v", o.tries, made, err)
	}
	expectRefusal(t, link, 5, "snapshot") // it has none
}

// TestCanceledWhileItWaits: a dispatcher takes one of three connections back while they wait. It is not tried, and nothing is said of it.
func TestCanceledWhileItWaits(t *testing.T) {
	e, _, in, link := injectingEngine(t, nil)
	other, _ := sourceLink(t, e, 0)
	for id := range uint64(3) {
		e.handedOff(in, id+1, handoffTo(int(id)))
	}
	e.request(in, wire.Frame{ID: 2, Message: &wire.Cancel{Reason: "it took too long"}})
	e.request(other, wire.Frame{ID: 3, Message: &wire.Cancel{Reason: "it is not this one's"}})
	refused := e.counters.refused
	opened(t, e)
	expectRefusal(t, link, 1, "snapshot") // it has none
	expectRefusal(t, link, 3, "snapshot")
	if n := e.counters.refused - refused; n != 2 || len(e.takers) != 0 || len(e.inject.handoffs) != 0 {
		t.Errorf("%d connections refused, %d under way, %d wait; want 2, 0 and 0", n, len(e.takers), len(e.inject.handoffs))
	}
}

// TestLinkedConnectionsDoNotWait hands a connection for a linked server to such a host.
func TestLinkedConnectionsDoNotWait(t *testing.T) {
	e, o, in, link := injectingEngine(t, errors.New("needs Linux 6.9"))
	m := handoffTo(1)
	m.Delivery = wire.DeliverLinked
	e.handedOff(in, 1, m)
	e.flush()
	expectRefusal(t, link, 1, "no application here")
	if o.tries != 0 {
		t.Error("the kernel was asked for nothing")
	}
}

// TestDispatcherHearsOfUnmodified has a dispatcher ask, and an operator mend what was missing.
func TestDispatcherHearsOfUnmodified(t *testing.T) {
	e, o, in, link := injectingEngine(t, reqsk.ErrSyncookies)
	e.request(in, wire.Frame{Message: &wire.Cookies{Unmodified: true}})
	opened(t, e)
	expectAbility(t, link, "tcp_syncookies")
	e.tickInjector(time.Now())
	if e.inject.opening {
		t.Error("it is tried again at once")
	}
	e.tickInjector(time.Now().Add(injectAgain + time.Second))
	opened(t, e) // in vain, and there is nothing new to say
	o.err = nil
	e.tickInjector(time.Now().Add(2 * (injectAgain + time.Second)))
	opened(t, e)
	expectAbility(t, link, "")
	if o.tries != 3 {
		t.Errorf("%d tries", o.tries)
	}
	// Who asks later hears it at once.
	e.request(in, wire.Frame{Message: &wire.Cookies{Unmodified: true}})
	e.flush()
	expectAbility(t, link, "")
	e.tickInjector(time.Now().Add(time.Hour))
	if o.tries != 3 || e.inject.opening {
		t.Error("it is opened again")
	}
}

// TestNobodyAsksForUnmodified: an agent whose dispatcher has no such servers opens nothing.
func TestNobodyAsksForUnmodified(t *testing.T) {
	e, o, in, _ := injectingEngine(t, nil)
	e.request(in, wire.Frame{Message: &wire.Cookies{}})
	e.tickInjector(time.Now().Add(time.Hour))
	if o.tries != 0 || e.inject.opening {
		t.Error("it was tried")
	}
}

func TestUnmodifiedWithoutBPF(t *testing.T) {
	e, o, in, link := injectingEngine(t, nil)
	e.cfg.Gate.Mode = GateNFT
	e.request(in, wire.Frame{Message: &wire.Cookies{Unmodified: true}})
	e.handedOff(in, 1, handoffTo(1))
	e.flush()
	expectAbility(t, link, "gate.mode is nft")
	for { // behind the answer to Cookies
		f, _, err := link.Receive()
		if r, ok := f.Message.(*wire.Refuse); err != nil || ok && f.ID == 1 {
			if err != nil || !strings.Contains(r.Reason, "gate.mode is nft") {
				t.Errorf("answered with %+v, %v", f.Message, err)
			}
			break
		}
	}
	if o.tries != 0 {
		t.Error("BPF was loaded")
	}
}

func TestCheckUnmodified(t *testing.T) {
	const kfunc = "no such function: needs Linux 6.9"
	probed := []reqsk.Finding{
		{Name: "BTF", OK: true, Required: true},
		{Name: "kfunc", Required: true, Detail: kfunc},
		{Name: "tracepoints", Detail: "does without"},
	}
	for _, tt := range []struct {
		name string
		cfg  *Config
		want []Finding
	}{
		{"without a configuration", nil, []Finding{
			{What: "unmodified servers: BTF", OK: true, Optional: true},
			{What: "unmodified servers: kfunc", Optional: true, Advice: kfunc},
			{What: "unmodified servers: tracepoints", Optional: true, Advice: "does without"},
		}},
		{"with nftables", &Config{Gate: GateConfig{Mode: GateNFT}}, []Finding{
			{What: "unmodified servers: BPF", Optional: true, Detail: needsBPF},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, checkUnmodified(tt.cfg, probed)); diff != "" {
				t.Error(diff)
			}
		})
	}
	found := false
	for _, f := range Check(nil) {
		found = found || strings.Contains(f.What, "bpf_sk_assign_tcp_reqsk")
	}
	if !found {
		t.Error("rehome check does not look for the kernel function")
	}
}
