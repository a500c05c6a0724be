// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/tcprepair"
)

// A granted flow stays here until Settle, though another owner is recorded.
func TestGrant(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	for _, vip := range r.vips {
		client, server := r.connect(t, vip, netip.AddrPort{})
		flow := flowOf(client)
		if err := g.Hold(flow, both, long); err != nil {
			t.Fatal(err)
		}
		there := moved(t, server, r.servers[0], func() {
			if got, err := g.Grant(flow, 1, 1); err != nil || got.Node != 1 || got.Epoch != 2 {
				t.Errorf("Grant: %+v, %v", got, err)
			}
		})
		write(t, client, "granted")
		silence(t, there)
		if got, err := g.Settle(flow, 3, 1); !errors.Is(err, gate.ErrEpoch) || got.Epoch != 2 || got.Node != 1 {
			t.Errorf("Settle of another epoch: %+v, %v", got, err)
		}
		if _, err := g.Settle(flow, 2, 2); !errors.Is(err, gate.ErrEpoch) {
			t.Errorf("Settle for another node: %v", err)
		}
		settled := time.Now()
		if _, err := g.Settle(flow, 2, 1); err != nil {
			t.Fatal(err)
		}
		arrives(t, there, "granted")
		exchange(t, client, there, "settled")
		if len(g.mutes) != 1 {
			t.Errorf("mute for %d flows, want 1", len(g.mutes))
		}
		for _, after := range []time.Duration{0, time.Second} {
			if err := g.unmute(time.Now().Add(after)); err != nil {
				t.Fatal(err)
			}
			left, err := g.elements(g.rules.of(vip.Addr().Is4()).muted)
			if want := after == 0; err != nil || (len(left) == 1) != want && time.Since(settled) < muteTime || len(left) != len(g.mutes) {
				t.Errorf("%v later: %d elements, %d flows, %v", after, len(left), len(g.mutes), err)
			}
		}
	}
	if s := g.Stats(); s.Forwarded == 0 || s.Flows != 2 {
		t.Errorf("%+v: want packets forwarded, and two flows", s)
	}
	if _, err := g.Settle(tcprepair.NewFlow(netip.MustParseAddrPort("192.0.2.1:1"), r.vips[0]), 2, 1); !errors.Is(err, gate.ErrNoFlow) {
		t.Errorf("Settle of an unknown flow: %v", err)
	}
}

// Who grants a flow and dies has promised it: its packets go to the owner when the hold is over, and the next process knows.
func TestGrantOutlivesProcess(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{Keep: true})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	if err := g.Hold(flow, both, 400*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	there := moved(t, server, r.servers[1], func() {
		if _, err := g.Grant(flow, 1, 2); err != nil {
			t.Error(err)
		}
	})
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, client, "promised")
	silence(t, there)
	next := r.open(t, Config{})
	if s := next.Stats(); s.Holds != 1 {
		t.Errorf("the next process knows of %d holds, want 1", s.Holds)
	}
	if got, err := next.Route(flow); err != nil || got.Node != 2 || got.Epoch != 2 {
		t.Errorf("Route: %+v, %v", got, err)
	}
	arrives(t, there, "promised")
	exchange(t, client, there, "with the next process")
}

// What a grant gave can be taken back while it is held.
func TestGrantTakenBack(t *testing.T) {
	r := newRig(t)
	g := r.open(t, Config{})
	r.configure(t, g)
	client, server := r.connect(t, r.vips[0], netip.AddrPort{})
	flow := flowOf(client)
	if err := g.Hold(flow, gate.Ingress, long); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Grant(flow, 1, 1); err != nil {
		t.Fatal(err)
	}
	if got, err := g.Commit(flow, 2, 0); err != nil || got.Node != 0 || got.Epoch != 3 {
		t.Fatalf("Commit: %+v, %v", got, err)
	}
	write(t, client, "waits")
	silence(t, server)
	if _, err := g.Release(flow); err != nil {
		t.Fatal(err)
	}
	arrives(t, server, "waits")
	exchange(t, client, server, "here as before")
}
