// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/rehome-net/rehome/handoff/gate"
)

// Names outlive the process, and go with the forwarder's other files.
func TestNames(t *testing.T) {
	h, dir := network(t, 1)[0], bpffs(t)
	f, err := h.open(t, Config{Interfaces: []string{"eth0"}, PinPath: dir, MaxFlows: 1000})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("n", maxName)
	for _, want := range []map[gate.Node]string{
		{},
		{1: "web-1", MaxNodes - 1: long},
		{1: "web-1", 2: "web-2"},
		{1: "web-3"},
	} {
		n, err := OpenNames(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Save(want); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if n, err = OpenNames(dir); err != nil {
			t.Fatal(err)
		}
		got, err := n.Load()
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		for _, bad := range []string{"", long + "n"} {
			if err := n.Save(map[gate.Node]string{1: bad}); err == nil {
				t.Errorf("a name of %d bytes is taken", len(bad))
			}
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := f.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
}

// What is no map of names is refused, and stays.
func TestForeignNames(t *testing.T) {
	dir := bpffs(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Pin(filepath.Join(dir, namesFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNames(dir); !errors.Is(err, ErrLayout) {
		t.Errorf("%v, want ErrLayout", err)
	}
}
