// SPDX-License-Identifier: Apache-2.0

//go:build linux

package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/wire"
)

// pinnedServices is what an acceptor of a process before this one has left at dir: its services.
func pinnedServices(t *testing.T, dir string, at ...netip.AddrPort) cookie.Maps {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	const addressPortFamily = 20
	services, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: addressPortFamily, ValueSize: 4, MaxEntries: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { services.Close() })
	if err := services.Pin(filepath.Join(dir, "services")); err != nil {
		t.Fatal(err)
	}
	m := cookie.Maps{Services: services}
	for _, a := range at {
		if err := m.AddService(a); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// A dispatcher that has no socketless service any more ends what an agent before this one has pinned for it, and nothing else.
func TestNoMoreCookies(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("rehome-test", dir, "bpf", 0, ""); err != nil {
		t.Skipf("cannot mount a BPF filesystem: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := testEngine(t, "b", "a")
	e.cfg.Gate.Pin = filepath.Join(dir, "gate")
	others, stale := netip.MustParseAddrPort("192.0.2.2:80"), netip.MustParseAddrPort("192.0.2.3:80")
	e.entries[testAddress()], e.entries[others] = "b", "c"
	for _, from := range []string{"b", "b", "c"} {
		if err := e.acceptCookies(from, &wire.Cookies{}); err != nil {
			t.Errorf("nothing is pinned: %v", err)
		}
	}
	m := pinnedServices(t, e.acceptorPin(), testAddress(), others, stale)
	if err := e.acceptCookies("b", &wire.Cookies{}); err != nil {
		t.Fatal(err)
	}
	if left, err := m.List(); err != nil || len(left) != 1 || left[0] != others {
		t.Errorf("%v, %v; want that of the other dispatcher, %v", left, err, others)
	}
	e.cfg.Gate.Pin = pinOff
	if err := e.acceptCookies("c", &wire.Cookies{}); err != nil {
		t.Errorf("nothing is ever pinned: %v", err)
	}
	if left, err := m.List(); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
}
