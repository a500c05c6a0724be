// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"strings"
	"testing"

	"github.com/rehome-net/rehome/handoff/peer"
	"github.com/rehome-net/rehome/handoff/wire"
)

// agentLink connects as a backend's agent, and ends with the test if not before.
func agentLink(t *testing.T, host, at string) *wire.Link {
	t.Helper()
	link, err := peer.Self{Host: host}.Dial(t.Context(), "front", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = link.Close() })
	return link
}

// tell says something and waits until it has been taken in.
func tell(t *testing.T, link *wire.Link, messages ...wire.Message) {
	t.Helper()
	for id, m := range append(messages, &wire.Ping{}) {
		if err := link.Send(uint64(id), m); err != nil {
			t.Fatal(err)
		}
	}
	if f, _, err := link.Receive(); err != nil || f.Message.Kind() != (&wire.Pong{}).Kind() {
		t.Fatalf("%v %v, want Pong", f, err)
	}
}

// TestDrainingSurvivesOldLink: after an outage the old connection ends seconds after the new one has said what is true.
func TestDrainingSurvivesOldLink(t *testing.T) {
	cfg := standing(t)
	cfg.Listen = free(t).String()
	s := start(t, cfg)
	draining := func(want bool, when string) {
		t.Helper()
		if got := s.backend("b1").draining.Load(); got != want {
			t.Errorf("%s: draining is %t", when, got)
		}
	}
	old := agentLink(t, "b1", cfg.Listen)
	tell(t, old, &wire.Presence{Draining: true})
	draining(true, "said")
	fresh := agentLink(t, "b1", cfg.Listen)
	tell(t, fresh)
	draining(true, "connected again")
	tell(t, fresh, &wire.Presence{Draining: true})
	tell(t, old, &wire.Presence{}) // was on its way for long
	draining(true, "said by an old connection")

	// A reload that moves the backend makes another one of it.
	moved := cfg
	moved.Peers = append([]PeerConfig{{Name: "b1", Address: free(t).String()}}, cfg.Peers[1:]...)
	before := s.backend("b1")
	if err := s.Reload(t.Context(), valid(t, moved)); err != nil {
		t.Fatal(err)
	}
	if s.backend("b1") == before {
		t.Fatal("it is the same backend")
	}
	_ = old.Close()
	until(t, "the old connection's end is seen", func() bool { return strings.Count(s.logs.String(), "an agent has gone") == 1 })
	draining(true, "the old connection has ended")
	tell(t, fresh, &wire.Presence{})
	draining(false, "undrained")
	tell(t, fresh, &wire.Presence{Draining: true})
	_ = fresh.Close()
	until(t, "an agent that is gone has no wishes", func() bool { return !s.backend("b1").draining.Load() })
}
