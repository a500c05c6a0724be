// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
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
	return filepath.Join(dir, "gate")
}

// openFiles are what the process has open, by what they are.
func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(name, "/proc") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// attached counts the programs at eth0.
func (h *host) attached(t *testing.T) (n int) {
	t.Helper()
	index := h.index(t)
	if atLeast(6, 6) != nil {
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			filters, err := h.nl.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, parent)
			if err != nil {
				t.Fatal(err)
			}
			n += len(filters)
		}
		return n
	}
	h.do(t, func() error {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
			if err != nil {
				return err
			}
			n += len(r.Programs)
		}
		return nil
	})
	return n
}

func (h *host) taps(t *testing.T) (n int) {
	t.Helper()
	links, err := h.nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, "rhtap") {
			n++
		}
	}
	return n
}

func TestCloseLeavesNothing(t *testing.T) {
	h := network(t, 1)[0]
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	for range 3 {
		g, err := h.open(t, Config{Interfaces: []string{"eth0"}})
		if err != nil {
			t.Fatal(err)
		}
		if h.attached(t) != 2 || h.taps(t) != 1 {
			t.Fatalf("%d programs and %d taps while open", h.attached(t), h.taps(t))
		}
		done := make(chan error, 1)
		go func() { done <- g.Run(t.Context()) }()
		if err := g.Hold(packet4(), Ingress, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		// Run ends by itself when its gate does.
		select {
		case err := <-done:
			if !errors.Is(err, ErrClosed) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Run goes on")
		}
		if err := g.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if err := g.Hold(packet4(), Ingress, time.Minute); !errors.Is(err, ErrClosed) {
			t.Errorf("Hold on a closed gate: %v", err)
		}
		if _, err := g.Route(packet4()); !errors.Is(err, ErrClosed) {
			t.Errorf("Route on a closed gate: %v", err)
		}
		if err := g.Run(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Run on a closed gate: %v", err)
		}
		_ = g.Stats()
	}
	if h.attached(t) != 0 || h.taps(t) != 0 {
		t.Errorf("left: %d programs, %d taps", h.attached(t), h.taps(t))
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if after := openFiles(t); !slices.Equal(after, files) {
		t.Errorf("open files before %v, after %v", files, after)
	}
}

func TestOpenErrors(t *testing.T) {
	h := network(t, 1)[0]
	files := openFiles(t)
	for name, c := range map[string]Config{
		"no interface":      {},
		"named twice":       {Interfaces: []string{"eth0", "eth0"}},
		"unknown":           {Interfaces: []string{"rhnone"}},
		"second is unknown": {Interfaces: []string{"eth0", "rhnone"}},
		"negative":          {Interfaces: []string{"eth0"}, HoldBytes: -1},
		"no bpffs":          {Interfaces: []string{"eth0"}, PinPath: t.TempDir()},
	} {
		var op *OpError
		if g, err := h.open(t, c); !errors.As(err, &op) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
	if h.attached(t) != 0 || h.taps(t) != 0 {
		t.Errorf("left: %d programs, %d taps", h.attached(t), h.taps(t))
	}
	if after := openFiles(t); !slices.Equal(after, files) {
		t.Errorf("open files before %v, after %v", files, after)
	}
}

func TestOpenWithoutCapabilities(t *testing.T) {
	h := network(t, 1)[0]
	h.do(t, func() error {
		// This thread ends with the test, and nothing else is on it.
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		_, err := Open(Config{Interfaces: []string{"eth0"}})
		if !errors.Is(err, ErrPermission) {
			t.Errorf("Open = %v, want ErrPermission", err)
		}
		return nil
	})
}

func TestSecondGateIsRefused(t *testing.T) {
	h := network(t, 1)[0]
	h.gated(t)
	if _, err := h.open(t, Config{Interfaces: []string{"eth0"}}); !errors.Is(err, ErrAttached) {
		t.Errorf("second gate: %v", err)
	}
	if h.attached(t) != 2 || h.taps(t) != 1 {
		t.Errorf("%d programs, %d taps: the refused one left something", h.attached(t), h.taps(t))
	}
}

// A program somebody has left on the interface that ends the chain (TC_ACT_OK) must not shadow the gate (KERNEL 23).
func TestStaleProgramDoesNotShadow(t *testing.T) {
	if err := atLeast(6, 6); err != nil {
		t.Skipf("needs tcx: %v", err)
	}
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	stale, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stale", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stale.Close()
	var l link.Link
	server.do(t, func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: server.index(t), Program: stale, Attach: ebpf.AttachTCXIngress})
		return err
	})
	defer l.Close()
	g := server.gated(t)
	f := tcprepair.NewFlow(netip.MustParseAddrPort("10.66.0.2:8080"), netip.MustParseAddrPort("10.66.0.1:40126"))
	if err := g.Hold(f, Ingress, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := client.dial(t, 40126, "10.66.0.2:8080"); err == nil {
			_ = c.Close()
		}
	}()
	eventually(t, "the SYN is held", func() bool { return g.Stats().Held > 0 })
	if _, err := g.Release(f); err != nil {
		t.Fatal(err)
	}
	<-done
}

// A pinned gate goes on forwarding with no process, and the next process goes on with its tables.
func TestPinnedReopen(t *testing.T) {
	c := newCluster(t, 2)
	if err := c.gate.Close(); err != nil {
		t.Fatal(err)
	}
	config := Config{Interfaces: []string{"eth0"}, PinPath: bpffs(t), MaxFlows: 1000}
	g, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range c.servers {
		if err := g.SetNode(Node(i+1), c.entry.index(t), s.mac(t), c.entry.mac(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.SetService(netip.MustParseAddrPort(vip4+":80"), []Node{1, 2}); err != nil {
		t.Fatal(err)
	}
	conn, err := c.client.dial(t, 0, vip4+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	first := who(t, conn)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if c.entry.attached(t) != 2 || c.entry.taps(t) != 0 {
		t.Errorf("closed: %d programs, %d taps; want 2 and 0", c.entry.attached(t), c.entry.taps(t))
	}
	other, err := c.client.dial(t, 0, vip4+":80")
	if err != nil {
		t.Fatalf("with no process: %v", err)
	}
	defer other.Close()
	if second := who(t, other); second == first {
		t.Errorf("both connections at server %s", first)
	}
	config.MaxFlows = 0 // another size now: the pinned table keeps its own
	g, err = c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := g.Route(flowOf(conn)); err != nil || r.Epoch != 1 || string(rune('0'+r.Node)) != first {
		t.Errorf("after reopening Route = %+v, %v", r, err)
	}
	if c.entry.attached(t) != 2 || c.entry.taps(t) != 1 {
		t.Errorf("reopened: %d programs, %d taps; want 2 and 1", c.entry.attached(t), c.entry.taps(t))
	}
	if err := g.Hold(flowOf(conn), Ingress, time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reopened gate holds", func() bool { return g.Stats().Held > 0 })
	if err := g.Remove(); err != nil {
		t.Fatal(err)
	}
	if c.entry.attached(t) != 0 || c.entry.taps(t) != 0 {
		t.Errorf("removed: %d programs, %d taps", c.entry.attached(t), c.entry.taps(t))
	}
	if _, err := os.Stat(config.PinPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin path: %v", err)
	}
}

// A hold that a dead process has left ends in the kernel, and the new process's frames are not lost before.
func TestHoldOutlivesProcess(t *testing.T) {
	hosts := network(t, 2)
	client, server := hosts[0], hosts[1]
	done := accept(server.listen(t, "10.66.0.2:8080"))
	config := Config{Interfaces: []string{"eth0"}, PinPath: bpffs(t)}
	g, err := server.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := client.dial(t, 0, "10.66.0.2:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f := flowOf(conn)
	if err := g.Hold(f, Ingress, time.Second); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if g, err = server.open(t, config); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
	}()
	run(t, g)
	msg := make([]byte, 5000)
	ramp(msg, 0)
	if _, err := conn.Write(msg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old hold holds", func() bool { return g.Stats().Held > 0 })
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wait(t, done, len(msg))
	if s := g.Stats(); s.Lapsed != 1 {
		t.Errorf("%d holds lapsed, want 1", s.Lapsed)
	}
}

// Kernels below 6.6 have no tcx: the same programs as tc filters.
func TestClsact(t *testing.T) {
	h := network(t, 1)[0]
	g := h.gated(t)
	other := network(t, 1)[0]
	hook := hook{ifindex: other.index(t), name: "eth0", attach: ebpf.AttachTCXIngress, program: g.table.objects.RehomeIn}
	c, err := hook.attachClsact(other.nl)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hook.attachClsact(other.nl); !errors.Is(err, ErrAttached) {
		t.Errorf("second filter: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err = hook.attachClsact(other.nl); err != nil {
		t.Fatalf("after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
