// SPDX-License-Identifier: Apache-2.0

package leakcheck_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	netnslab "github.com/rehome-net/rehome/netns-lab"
	"github.com/rehome-net/rehome/netns-lab/labtest"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// Each kind of leak is found while it is there, and not after.
func TestEveryKindOfLeakIsFound(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		name string
		root bool
		cfg  leakcheck.Config
		leak func(t *testing.T) (undo func())
		want string
	}{
		{"goroutine", false, leakcheck.Config{}, func(*testing.T) func() {
			stop, done := make(chan struct{}), make(chan struct{})
			go forgotten(stop, done)
			done <- struct{}{} // it runs
			return func() { close(stop); <-done }
		}, "leakcheck_test.forgotten"},
		{"socket", false, leakcheck.Config{}, func(t *testing.T) func() {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = l.Close() }
		}, "socket:["},
		{"file", false, leakcheck.Config{Files: []string{filepath.Join(dir, "rh*")}}, func(t *testing.T) func() {
			path := filepath.Join(dir, "rh1")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(path) }
		}, "file " + dir + "/rh1"},
		{"namespace", true, leakcheck.Config{Namespaces: "rh-" + labtest.Prefix()}, func(t *testing.T) func() {
			topo := netnslab.Standard(0)
			topo.Name = labtest.Prefix() + "leak"
			lab, err := netnslab.Build(t.Context(), topo)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = lab.Close() }
		}, "network namespace rh-"},
		{"BPF map", true, leakcheck.Config{BPF: []string{"rh_leaktest"}}, func(t *testing.T) func() {
			m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "rh_leaktest", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = m.Close() }
		}, "BPF map rh_leaktest"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.root {
				labtest.RequireRoot(t)
			}
			before, err := leakcheck.Take(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			undo := test.leak(t)
			leaks, err := before.Leaks(0)
			if err != nil {
				t.Error(err)
			}
			if !slices.ContainsFunc(leaks, func(l string) bool { return strings.Contains(l, test.want) }) {
				t.Errorf("leaks %q, want one with %q", leaks, test.want)
			}
			undo()
			// With time for the kernel to free it.
			if leaks, err := before.Leaks(10 * time.Second); err != nil || len(leaks) > 0 {
				t.Errorf("after it was undone: %q, %v", leaks, err)
			}
		})
	}
}

func forgotten(stop, done chan struct{}) {
	<-done
	<-stop
	close(done)
}

func TestMainTellsTheStatus(t *testing.T) {
	var l net.Listener
	leave := run(func() int {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Error(err)
		}
		return 0
	})
	cfg := leakcheck.Config{Wait: time.Millisecond}
	if got := leakcheck.Main(leave, cfg); got != 1 {
		t.Errorf("with a leak: status %d", got)
	}
	if l != nil {
		_ = l.Close()
	}
	for _, status := range []int{0, 7} {
		if got := leakcheck.Main(run(func() int { return status }), cfg); got != status {
			t.Errorf("clean: status %d, want %d", got, status)
		}
	}
}

type run func() int

func (r run) Run() int { return r() }
