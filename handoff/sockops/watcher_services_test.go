// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// TestSetServices changes what is watched while connections stand.
func TestSetServices(t *testing.T) {
	f := newField(t, netnslab.Impairment{})
	stays, goes, comes := netip.AddrPortFrom(f.vip4, 80), netip.AddrPortFrom(f.vip4, 81), netip.AddrPortFrom(f.vip6, 82)
	log := watch(t, f.a, stays, goes)
	at := map[netip.AddrPort]pair{}
	for _, a := range []netip.AddrPort{stays, goes} {
		at[a] = connectTo(t, f, listen(t, f.a, a), a)
	}
	if err := log.w.SetServices([]netip.AddrPort{comes, stays}); err != nil {
		t.Fatal(err)
	}
	reset(at[goes].client)
	reset(at[stays].client)
	if e := log.next(t); e.Flow != at[stays].flow {
		t.Errorf("%+v, want the end of %v", e, at[stays].flow)
	}
	p := connectTo(t, f, listen(t, f.a, comes), comes)
	reset(p.client)
	if e := log.next(t); e.Flow != p.flow {
		t.Errorf("%+v, want the end of %v", e, p.flow)
	}
	log.none(t)
	// One too many for the table.
	many := make([]netip.AddrPort, 1<<16+1)
	for i := range many {
		many[i] = netip.AddrPortFrom(f.vip4, uint16(i))
		if i > 1<<16-1 {
			many[i] = comes
		}
	}
	if err := log.w.SetServices(many); err == nil {
		t.Error("65,537 services were accepted")
	}
	if err := log.w.SetServices([]netip.AddrPort{stays}); err != nil {
		t.Fatal(err)
	}
	p = connectTo(t, f, listen(t, f.a, netip.AddrPortFrom(f.vip6, 80)), netip.AddrPortFrom(f.vip6, 80))
	reset(p.client)
	log.none(t)
	if err := errors.Join(log.w.Close(), log.w.Close()); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := log.w.SetServices(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
