// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// bpffs mounts a BPF filesystem for the test.
func bpffs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("rehome-test", dir, "bpf", 0, ""); err != nil {
		t.Skipf("cannot mount a BPF filesystem: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "synproxy")
}

// While no process is there clients are connected, and their first packets wait for the next one.
func TestRestart(t *testing.T) {
	versions(t, func(t *testing.T, v6 bool) {
		var config Config
		path := bpffs(t)
		r := newRig(t, rigConfig{change: func(c *Config) {
			c.PinPath = path
			config = *c
		}})
		l := listen(t, r.servers[0], all(port), false)
		before := r.dial(t, r.at(v6), 0)
		send(t, "request", before, 0, 100)
		old := accept(t, l)
		expect(t, "request", old, 0, 100)

		if err := r.proxy.Close(); err != nil {
			t.Fatal(err)
		}
		during := r.dial(t, r.at(v6), 0)
		send(t, "request", during, 5, 100)
		transfer(t, "a connection from before", old, before, 0, 100000)

		next := open(t, r.entry, func() (*Proxy, error) { return Open(config) })
		from, to := locate(t, r.entry), locate(t, r.servers[0])
		if err := next.SetNode(gate.Node(1), from.index, to.mac, from.mac); err != nil {
			t.Fatal(err)
		}
		background(t, next.Run)
		s := accept(t, l)
		expect(t, "request", s, 5, 100)
		transfer(t, "answer", s, during, 0, 100000)

		if n := ingress(t, r.entry); n != 2 { // the forwarder's, too
			t.Errorf("%d programs", n)
		}
		if err := next.Remove(); err != nil {
			t.Error(err)
		}
		if n := ingress(t, r.entry); n != 1 {
			t.Errorf("%d programs after Remove", n)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	})
}

func ingress(t *testing.T, h *netnslab.Host) (n int) {
	t.Helper()
	index := locate(t, h).index
	if err := h.Do(func() error {
		r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			n = len(r.Programs)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestClosed(t *testing.T) {
	r := newRig(t, rigConfig{})
	if err := errors.Join(r.proxy.Close(), r.proxy.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.proxy.Stats(); !errors.Is(err, ErrClosed) {
		t.Errorf("Stats: %v", err)
	}
	f := r.newFake(t, false)
	if err := r.proxy.Decide(f.flow(1), Decision{Verb: Reset}); !errors.Is(err, ErrClosed) {
		t.Errorf("Decide: %v", err)
	}
	if err := r.proxy.SetParameters(cookie.Parameters{Secret: cookie.Secret{1}}); err == nil {
		t.Error("SetParameters of a closed proxy")
	}
	if err := r.proxy.Run(context.Background()); err != nil {
		t.Errorf("Run: %v", err)
	}
}
