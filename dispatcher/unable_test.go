// SPDX-License-Identifier: Apache-2.0

package dispatcher

import (
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/dispatcher/balance"
)

// TestUnableMember: a backend whose kernel cannot make connections says so when it is asked. Its pools with unmodified servers go without it,
// others do not, and an operator and Prometheus see why.
func TestUnableMember(t *testing.T) {
	cfg := standing(t)
	cfg.Pools[1].Delivery = DeliveryUnmodified
	s := start(t, cfg)
	a := fakeAgent{unable: "needs Linux 6.9"}
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	until(t, "b2 is up", s.backend("b2").up)
	shop, files := s.live.Load().pools["shop"].members[0], s.live.Load().pools["files"].members[1]
	seen := func(state, unable, gauge string, down bool) {
		t.Helper()
		until(t, "b2 is "+state, func() bool { return shop.message().GetState() == state })
		if m := shop.message(); m.GetUnable() != unable {
			t.Errorf("an operator sees %v, want %q", m, unable)
		}
		if got := shop.view(nil).Down; got != down {
			t.Errorf("a policy sees Down %v, want %v", got, down)
		}
		if m := s.live.Load().pools["shop"].member(time.Now(), balance.Visit{}, nil); (m == nil) != down {
			t.Errorf("the pool gives connections to %v", m)
		}
		if m := files.message(); m.GetState() != "up" || m.GetUnable() != "" || files.view(nil).Down {
			t.Errorf("the pool of linked servers has %v", m)
		}
		if got := memberGauges(t, s, "rehome_dispatcher_backend_unable"); !slices.Equal(got, []string{gauge}) {
			t.Errorf("backend_unable %q, want %s", got, gauge)
		}
	}
	seen("unable", "needs Linux 6.9", "shop/b2 1", true)
	a.becomes("")
	seen("up", "", "shop/b2 0", false)
	a.becomes("tcp_syncookies is 0")
	seen("unable", "tcp_syncookies is 0", "shop/b2 1", true)
	// An agent that is gone has said nothing of the next one.
	b2 := s.backend("b2")
	b2.mu.Lock()
	link := b2.link
	b2.mu.Unlock()
	a.mu.Lock()
	a.unable = ""
	a.mu.Unlock()
	_ = link.Close()
	seen("up", "", "shop/b2 0", false)
}

// TestUnmodifiedAfterReload asks a backend only when a pool needs it.
func TestUnmodifiedAfterReload(t *testing.T) {
	cfg := standing(t)
	s := start(t, cfg)
	a := fakeAgent{unable: "needs Linux 6.9"}
	a.serve(t, "b2", netipAddress(t, cfg.Peers[1]))
	until(t, "b2 is told", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.cookies) > 0
	})
	if a.asked() || s.backend("b2").unable.Load() != nil {
		t.Error("it was asked for what no pool needs")
	}
	next := valid(t, cfg)
	next.Pools[1].Delivery = DeliveryUnmodified
	if err := s.Reload(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	until(t, "it is asked", a.asked)
	until(t, "b2 is unable", func() bool { return s.live.Load().pools["shop"].members[0].message().GetState() == "unable" })
}
