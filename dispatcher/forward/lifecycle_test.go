// SPDX-License-Identifier: Apache-2.0

//go:build linux

package forward

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/netns-lab/leakcheck"
)

// childPath makes the test binary a dispatcher's host's process: it opens a forwarder at eth0 that is pinned there, and
// waits to be killed.
const childPath = "REHOME_FORWARD_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		os.Exit(child(path))
	}
	os.Exit(leakcheck.Main(m, leakcheck.Config{}))
}

func child(path string) int {
	f, err := Open(Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 1000})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("open")
	if err := f.Run(context.Background()); err != nil {
		fmt.Println(err)
	}
	return 1
}

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
	return filepath.Join(dir, "forward")
}

// attached are the names of the programs at eth0's ingress, first first, and that of its XDP program.
func (h *host) attached(t testing.TB) (names []string) {
	t.Helper()
	index := h.index(t)
	h.do(t, func() error {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress} {
			r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
			if err != nil {
				return err
			}
			for _, p := range r.Programs {
				names = append(names, programName(p.ID))
			}
		}
		l, err := h.nl.LinkByIndex(index)
		if err == nil && l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached {
			names = append(names, programName(ebpf.ProgramID(l.Attrs().Xdp.ProgId)))
		}
		return err
	})
	return names
}

func programName(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err.Error()
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return err.Error()
	}
	return info.Name
}

func (h *host) expect(t testing.TB, when string, names ...string) {
	t.Helper()
	var got []string
	// The kernel detaches some time after the last handle is closed.
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) {
		if got = h.attached(t); slices.Equal(got, names) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: attached %v, want %v", when, got, names)
			return
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	h := network(t, 1)[0]
	leakcheck.Check(t, leakcheck.Config{})
	for range 3 {
		f, err := h.open(t, Config{Interfaces: []string{"eth0"}, MaxFlows: 100})
		if err != nil {
			t.Fatal(err)
		}
		h.expect(t, "open", "rehome_forward")
		done := make(chan error, 1)
		go func() { done <- f.Run(t.Context()) }()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		// Run ends by itself when its forwarder does.
		select {
		case err := <-done:
			if !errors.Is(err, ErrClosed) || !errors.Is(err, gate.ErrClosed) {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Run goes on")
		}
		if err := f.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		if _, err := f.Route(flow4()); !errors.Is(err, ErrClosed) {
			t.Errorf("Route when closed: %v", err)
		}
		_ = f.Stats()
	}
	h.expect(t, "closed")
}

func TestRunEnds(t *testing.T) {
	h := network(t, 1)[0]
	f := h.forwarder(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 {
		if err := f.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	h := network(t, 1)[0]
	leakcheck.Check(t, leakcheck.Config{})
	for name, c := range map[string]Config{
		"no interface":      {},
		"named twice":       {Interfaces: []string{"eth0", "eth0"}},
		"unknown":           {Interfaces: []string{"rhnone"}},
		"second is unknown": {Interfaces: []string{"eth0", "rhnone"}},
		"negative":          {Interfaces: []string{"eth0"}, IdleTimeout: -1},
		"too long":          {Interfaces: []string{"eth0"}, IdleTimeout: 30 * 24 * time.Hour},
		"too many flows":    {Interfaces: []string{"eth0"}, MaxFlows: 1 << 30},
		"no such mode":      {Interfaces: []string{"eth0"}, Mode: 7},
		"no bpffs":          {Interfaces: []string{"eth0"}, PinPath: t.TempDir()},
		"loopback":          {Interfaces: []string{"lo"}},
	} {
		var op *OpError
		if c.MaxFlows == 0 {
			c.MaxFlows = 100
		}
		if f, err := h.open(t, c); !errors.As(err, &op) {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
	h.expect(t, "refused")
}

func TestOpenWithoutCapabilities(t *testing.T) {
	h := network(t, 1)[0]
	h.do(t, func() error {
		// This thread ends with the test, and nothing else is on it.
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			return err
		}
		if _, err := Open(Config{Interfaces: []string{"eth0"}, MaxFlows: 100}); !errors.Is(err, ErrPermission) {
			t.Errorf("Open = %v, want ErrPermission", err)
		}
		return nil
	})
}

func TestSecondForwarderIsRefused(t *testing.T) {
	h := network(t, 1)[0]
	h.forwarder(t, Config{})
	if _, err := h.open(t, Config{Interfaces: []string{"eth0"}, MaxFlows: 100}); !errors.Is(err, ErrAttached) || !errors.Is(err, gate.ErrAttached) {
		t.Errorf("second forwarder: %v", err)
	}
	h.expect(t, "refused", "rehome_forward")
}

// Whatever was attached before, or since, the forwarder's program comes first, also that of a gate.
func TestFirstInChain(t *testing.T) {
	h := network(t, 1)[0]
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "other", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	attach := func() {
		h.do(t, func() error {
			l, err := link.AttachTCX(link.TCXOptions{Interface: h.index(t), Program: other, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
	}
	attach()
	config := Config{Interfaces: []string{"eth0"}, PinPath: bpffs(t), MaxFlows: 100}
	f, err := h.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	h.expect(t, "open", "rehome_forward", "other")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	late, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "late", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	other = late
	attach()
	h.expect(t, "late comer", "late", "rehome_forward", "other")
	if f, err = h.open(t, config); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "reopened", "rehome_forward", "late", "other")
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	h.expect(t, "removed", "late", "other")
	if _, err := os.Stat(config.PinPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin path: %v", err)
	}
}

// A gate on the same interface keeps its place behind, and sees what the forwarder passes.
func TestBeforeGate(t *testing.T) {
	c := newCluster(t)
	var g *gate.Gate
	c.entry.do(t, func() (err error) {
		g, err = gate.Open(gate.Config{Interfaces: []string{"eth0"}})
		return err
	})
	defer g.Close()
	f := c.entry.forwarder(t, Config{})
	c.entry.expect(t, "open", "rehome_forward", "rehome_in")
	c.configure(t, f)
	if err := f.SetService(netip.MustParseAddrPort(vip6), []gate.Node{0}); err != nil {
		t.Fatal(err)
	}
	if s := who(t, c.dial(t, "tcp", vip4)); s != "1" {
		t.Errorf("served by %s, want node 1", s)
	}
	conn := c.dial(t, "tcp", vip6)
	if s := who(t, conn); s != "0" {
		t.Errorf("served by %s, want the entry", s)
	}
	if err := g.Hold(flowOf(conn), gate.Ingress, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the gate holds the dispatcher's own flow", func() bool { return g.Stats().Held > 0 })
}

// A killed process's programs go on forwarding by its tables, and the next process goes on with them; no packet is lost
// in between.
func TestKill(t *testing.T) {
	c := newCluster(t)
	path := bpffs(t)
	kill := c.child(t, path)
	config := Config{Interfaces: []string{"eth0"}, PinPath: path, MaxFlows: 5000} // another size now: the pinned table keeps its own
	setup, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	c.configure(t, setup)
	if err := setup.Close(); err != nil {
		t.Fatal(err)
	}
	// From here on a datagram every 200 us, each of which must come back.
	conn := c.dial(t, "udp", vip4)
	first := who(t, conn)
	const datagrams = 10000
	stream := make(chan error, 1)
	go func() { stream <- pingPong(conn, datagrams, 200*time.Microsecond) }()
	tcp := c.dial(t, "tcp", vip6)
	second := who(t, tcp)
	kill()
	c.entry.expect(t, "killed", "rehome_forward")
	for range 3 {
		f, err := c.entry.open(t, config)
		if err != nil {
			t.Fatal(err)
		}
		r, err := f.UDP().Route(flowOf(conn))
		if err != nil || r.Epoch != 1 || fmt.Sprint(r.Node) != first {
			t.Errorf("after reopening Route = %+v, %v; server %s", r, err, first)
		}
		if r, err = f.Route(flowOf(tcp)); err != nil || r.Epoch != 1 || fmt.Sprint(r.Node) != second {
			t.Errorf("after reopening Route = %+v, %v; server %s", r, err, second)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-stream; err != nil {
		t.Errorf("a packet was lost: %v", err)
	}
	if got := who(t, tcp); got != second {
		t.Errorf("served by %s, then %s", second, got)
	}
	f, err := c.entry.open(t, config)
	if err != nil {
		t.Fatal(err)
	}
	if n := f.Stats().Capacity; n != 2*uint64(linesFor(1000))*lineSlots {
		t.Errorf("%d slots: not the pinned tables", n)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	c.entry.expect(t, "removed")
}

// child starts a process of its own with a forwarder, and returns what kills it.
func (c *cluster) child(t *testing.T, path string) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childPath+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.entry.do(t, cmd.Start)
	var once bool
	kill = func() {
		if !once {
			once = true
			_ = cmd.Process.Signal(unix.SIGKILL)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "open" {
		t.Fatalf("child: %q, %v", line, err)
	}
	return kill
}
