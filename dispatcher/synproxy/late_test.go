// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"errors"
	"io"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// A copy of a first packet that comes when the connection is over makes no second one, whatever the way it takes.
func TestLateCopy(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		r := newRig(t, rigConfig{})
		f := r.newFake(t, false)
		l := listen(t, r.servers[0], all(port), false)
		syn := synOf(8000, 5)
		a := f.shake(syn)
		request := data(syn, a, 0, ramp(t, 0, 100), "PA")
		f.send(bare(syn, a), request)
		s := accept(t, l)
		expect(t, "request", s, 0, 100)
		// RST at once: no TIME_WAIT is left.
		if err := s.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f.receive("reset", syn.port, func(s segment) bool { return s.flags == "R" || s.flags == "AR" })
		if forgotten {
			r.proxy.mu.Lock()
			r.proxy.markGiven() // which otherwise happens within Patience
			r.proxy.mu.Unlock()
			if err := r.forwarder.Forget(f.flow(syn.port)); err != nil {
				t.Fatal(err)
			}
		}
		const copies = 3
		for range copies {
			f.send(request)
		}
		eventually(t, "the copies are recognised", func() bool { return r.accepted(t, 0).Late+r.stats(t).Late == copies })
		if a := r.accepted(t, 0); a.Made != 1 || a.Tried != 1 || (a.Late == 0) != forgotten {
			t.Errorf("forgotten=%t: %+v", forgotten, a)
		}
	}
}

// A client that is silent until nodes would not know its cookie any more is served here.
func TestAgedCookie(t *testing.T) {
	r := newRig(t, rigConfig{stack: true})
	here := listen(t, r.entry, all(port), false)
	c := r.dial(t, r.at(false), 0)
	eventually(t, "the handshake is over", func() bool { return r.stats(t).Completed == 1 })
	r.passTime(t, 2*cookie.Period)
	send(t, "request", c, 0, 100)
	s := accept(t, here)
	expect(t, "request", s, 0, 100)
	transfer(t, "answer", s, c, 0, 100000)
	undisturbed(t, c)
	if s := r.stats(t); s.Aged != 1 || s.Local != 1 {
		t.Errorf("%+v", s)
	}
}

// brokenTable fails where a test says.
type brokenTable struct {
	Table
	commit error
}

func (b *brokenTable) Take(changes ...gate.Change) []gate.Changed {
	return slices.Repeat([]gate.Changed{{Err: b.commit}}, len(changes))
}

// Where the flow table has no room, the client hears so at once.
func TestBrokenTable(t *testing.T) {
	for _, b := range []*brokenTable{{commit: gate.ErrFull}, {commit: gate.ErrEpoch}} {
		r := newRig(t, rigConfig{change: func(c *Config) {
			b.Table = c.Table
			c.Table = b
		}})
		l := listen(t, r.servers[0], all(port), false)
		c := r.dial(t, r.at(false), 0)
		send(t, "request", c, 0, 100)
		if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
		// The server has it already, and hears so, too.
		if _, err := io.ReadAll(accept(t, l)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("server: %v, want a reset", err)
		}
		if s := r.stats(t); s.Failed != 1 || s.Forwarded != 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestUnknownNode(t *testing.T) {
	r := newRig(t, rigConfig{})
	r.setDecide(func(Request) Decision { return Decision{Verb: Forward, Node: 7} })
	c := r.dial(t, r.at(false), 0)
	send(t, "request", c, 0, 100)
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// The decision may come from elsewhere, later.
func TestLaterDecision(t *testing.T) {
	r := newRig(t, rigConfig{})
	l := listen(t, r.servers[0], all(port), false)
	asked := make(chan tcprepair.Flow, 1)
	r.setDecide(func(q Request) Decision {
		asked <- q.Flow
		return Decision{Verb: Later}
	})
	c := r.dial(t, r.at(false), 0)
	send(t, "request", c, 0, 100)
	flow := <-asked
	eventually(t, "the decision is carried out", func() bool {
		err := r.proxy.Decide(flow, Decision{Verb: Forward, Node: 1}) // Decide may still be returning
		if err != nil && !errors.Is(err, ErrNoFlow) {
			t.Fatal(err)
		}
		return err == nil
	})
	s := accept(t, l)
	expect(t, "request", s, 0, 100)
	undisturbed(t, c)
	if err := r.proxy.Decide(flow, Decision{Verb: Reset}); !errors.Is(err, ErrNoFlow) {
		t.Errorf("decided twice: %v", err)
	}
}
