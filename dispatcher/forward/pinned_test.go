// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/rehome-net/rehome/handoff/gate"
)

// firstServiceSize and firstStatsSize are what the first layout had: a service without number and flags, ten counters.
const (
	firstServiceSize = 136
	firstStatsSize   = 80
)

// asFirst turns what is pinned in dir into what the first layout left there: one service, at vip, of nodes 1 and 2.
func asFirst(t *testing.T, dir string, service forwardServiceKey) {
	t.Helper()
	for _, name := range []string{"policies", "meters", "promises", "overall", "services", "stats"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	pin := func(s *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(s)
		if err == nil {
			t.Cleanup(func() { m.Close() })
			err = m.Pin(filepath.Join(dir, s.Name))
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	const noPrealloc = 1
	services := pin(&ebpf.MapSpec{Name: "services", Type: ebpf.Hash, KeySize: 20, ValueSize: firstServiceSize, MaxEntries: 4096, Flags: noPrealloc})
	pin(&ebpf.MapSpec{Name: "stats", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: firstStatsSize, MaxEntries: 1})
	value := make([]byte, firstServiceSize)
	binary.NativeEndian.PutUint32(value, 2)
	binary.NativeEndian.PutUint16(value[8:], 1)
	binary.NativeEndian.PutUint16(value[10:], 2)
	if err := services.Put(service, value); err != nil {
		t.Fatal(err)
	}
	setVersion(t, dir, firstLayout)
}

func setVersion(t *testing.T, dir string, version uint32) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, "settings"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var s forwardSetting
	if err := m.Lookup(uint32(0), &s); err != nil {
		t.Fatal(err)
	}
	s.Version = version
	if err := m.Put(uint32(0), s); err != nil {
		t.Fatal(err)
	}
}

// The tables of the first layout are taken over: flows keep their owners, services their nodes.
func TestFirstLayout(t *testing.T) {
	c := newCluster(t)
	path := bpffs(t)
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 1000}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, f)
	conn := c.dial(t, "tcp", vip4)
	server := who(t, conn)
	before, err := f.Route(flowOf(conn))
	if err != nil {
		t.Fatal(err)
	}
	key := f.serviceKey(netip.MustParseAddrPort(vip4))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	asFirst(t, path, key)
	for range 2 { // the second time it is of this layout
		if f, err = c.entry.open(t, config); err != nil {
			t.Fatal(err)
		}
		r, err := f.Route(flowOf(conn))
		if err != nil || r.Node != before.Node || r.Epoch != before.Epoch {
			t.Errorf("%+v, %v; before %+v", r, err, before)
		}
		if s := who(t, conn); s != server {
			t.Errorf("served by %s, then %s", server, s)
		}
		served := map[string]bool{}
		for range 4 {
			served[who(t, c.dial(t, "tcp", vip4))] = true
		}
		if fmt.Sprint(served) != "map[1:true 2:true]" || f.number(netip.MustParseAddrPort(vip4)) != 1 {
			t.Errorf("new connections are served by %v; service %d", served, f.number(netip.MustParseAddrPort(vip4)))
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// A process that died between the two files' replacement has left the first version with this one's maps.
	setVersion(t, path, firstLayout)
	if f, err = c.entry.open(t, config); err != nil {
		t.Fatal(err)
	}
	if s := who(t, conn); s != server {
		t.Errorf("served by %s, then %s", server, s)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}

// asCountedInArray has dir as a process left it that counted services in an array.
func asCountedInArray(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "meters")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	old, err := ebpf.NewMap(&ebpf.MapSpec{Name: "meters", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 48, MaxEntries: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := old.Pin(path); err != nil {
		t.Fatal(err)
	}
}

// Where services were counted in an array, they are counted anew, and nothing else changes.
func TestCountedInArray(t *testing.T) {
	c := newCluster(t)
	path := bpffs(t)
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 1000}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, f)
	conn := c.dial(t, "tcp", vip4)
	server := who(t, conn)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	asCountedInArray(t, path)
	if f, err = c.entry.open(t, config); err != nil {
		t.Fatal(err)
	}
	if s := who(t, conn); s != server {
		t.Errorf("served by %s, then %s", server, s)
	}
	who(t, c.dial(t, "tcp", vip4))
	at := netip.MustParseAddrPort(vip4)
	if s, err := f.ServiceStats(at); err != nil || s.Assigned != 1 {
		t.Errorf("%+v, %v: want the one new connection", s, err)
	}
	if err := f.RemoveService(at); err != nil {
		t.Error(err)
	}
	if err := f.SetService(at, []gate.Node{1}); err != nil {
		t.Error(err)
	}
	if s, err := f.ServiceStats(at); err != nil || s.Assigned != 0 {
		t.Errorf("a new service: %+v, %v", s, err)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}

// Tables of another version are refused, and stay as they are.
func TestUnknownLayout(t *testing.T) {
	h := network(t, 1)[0]
	path := bpffs(t)
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 100}
	f, err := h.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Adopt(flow4(), 3, 4); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	setVersion(t, path, layout+1)
	if f, err := h.open(t, config); !errors.Is(err, ErrLayout) {
		t.Errorf("opened: %v, %v", f, err)
	}
	h.expect(t, "refused", "rehome_forward")
	// A map of an unexpected size is no table of the first layout, either.
	setVersion(t, path, firstLayout)
	if err := os.Remove(filepath.Join(path, "ports")); err != nil {
		t.Fatal(err)
	}
	strange, err := ebpf.NewMap(&ebpf.MapSpec{Name: "ports", Type: ebpf.Array, KeySize: 4, ValueSize: 20, MaxEntries: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer strange.Close()
	if err := strange.Pin(filepath.Join(path, "ports")); err != nil {
		t.Fatal(err)
	}
	if f, err := h.open(t, config); !errors.Is(err, ErrLayout) {
		t.Errorf("opened: %v, %v", f, err)
	}
	if err := os.Remove(filepath.Join(path, "ports")); err != nil {
		t.Fatal(err)
	}
	if f, err = h.open(t, config); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Route(flow4()); err != nil || r.Node != 4 || r.Epoch != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
}
