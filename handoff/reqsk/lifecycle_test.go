// SPDX-License-Identifier: Apache-2.0

//go:build linux

package reqsk

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/tcprepair"
)

func (r *rig) devices(t testing.TB) (n int) {
	t.Helper()
	if err := r.server.Do(func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			if strings.HasPrefix(i.Name, "rhinj") {
				n++
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCloseLeavesNothing(t *testing.T) {
	r := newRig(t)
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80")
	for range 3 {
		in := r.open(t, Config{})
		if n := r.devices(t); n != 1 {
			t.Errorf("%d devices while open", n)
		}
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		var programs []ebpf.ProgramID
		for _, p := range []*ebpf.Program{in.objects.RehomeReqsk, in.objects.RehomeOutcome} {
			if p == nil {
				continue // no tracepoints here
			}
			info, err := p.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			programs = append(programs, id)
		}
		for range 2 {
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for _, id := range programs {
			eventually(t, "the program goes", func() bool {
				p, err := ebpf.NewProgramFromID(id)
				if err == nil {
					_ = p.Close()
				}
				return errors.Is(err, os.ErrNotExist)
			})
		}
		eventually(t, "the device goes", func() bool { return r.devices(t) == 0 })
		if err := in.Inject(s); !errors.Is(err, ErrClosed) {
			t.Errorf("Inject after Close: %v", err)
		}
		// What was made is the kernel's.
		converse(t, client, accept(t, server), 100)
	}
}

func TestSeveralInjectors(t *testing.T) {
	r := newRig(t)
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80")
	a, b := r.open(t, Config{}), r.open(t, Config{Device: "rhinjected", Lanes: 3})
	if b.Device() != "rhinjected" || !strings.HasPrefix(a.Device(), "rhinj") || a.Device() == b.Device() {
		t.Errorf("devices %s and %s", a.Device(), b.Device())
	}
	for _, in := range []*Injector{a, b} {
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		if err := in.Inject(s); err != nil {
			t.Fatal(err)
		}
		converse(t, client, accept(t, server), 100)
	}
}

// Open lets nothing out of its device, and adds no route that others might take.
func TestDeviceIsIsolated(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	routes, err := r.server.Command(t.Context(), "ip", "route", "show", "table", "all", "dev", in.Device()).CombinedOutput()
	if err != nil {
		t.Skipf("needs ip: %v", err)
	}
	for _, l := range strings.Split(strings.TrimSpace(string(routes)), "\n") {
		if l != "" && !strings.HasPrefix(l, "local 192.0.0.8 ") {
			t.Errorf("IPv4 route %q", l)
		}
	}
	routes, err = r.server.Command(t.Context(), "ip", "-6", "route", "show", "table", "all", "dev", in.Device()).CombinedOutput()
	if err != nil || strings.TrimSpace(string(routes)) != "" {
		t.Errorf("IPv6 routes %q, %v", routes, err)
	}
	addrs, err := r.server.Command(t.Context(), "ip", "-6", "addr", "show", "dev", in.Device()).CombinedOutput()
	if err != nil || strings.Contains(string(addrs), "inet6") {
		t.Errorf("IPv6 addresses %q, %v", addrs, err)
	}
}

func TestConfig(t *testing.T) {
	r := newRig(t)
	for name, c := range map[string]Config{
		"lanes": {Lanes: 65}, "negative lanes": {Lanes: -1}, "patience": {Patience: -1}, "device": {Device: "a/b"},
		"long device": {Device: strings.Repeat("x", 20)},
	} {
		var op *OpError
		if in, err := r.tryOpen(c); !errors.As(err, &op) {
			t.Errorf("%s: %v, %v", name, in, err)
		}
	}
	if n := r.devices(t); n != 0 {
		t.Errorf("%d devices left", n)
	}
}

func withoutCapabilities() error {
	none := make([]unix.CapUserData, 2)
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
}

// inThread runs f on a thread of the server's host that has no capabilities and is thrown away.
func (r *rig) powerless(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		done <- r.server.Do(func() error {
			if err := withoutCapabilities(); err != nil {
				return err
			}
			f()
			return nil
		})
	}()
	// Do cannot go back to its own namespace without capabilities, and discards the thread.
	<-done
}

func TestOpenWithoutCapabilities(t *testing.T) {
	r := newRig(t)
	var err error
	r.powerless(t, func() { _, err = Open(Config{}) })
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if !errors.Is(err, ErrPermission) {
		t.Errorf("Open: %v; want ErrPermission", err)
	}
}

func TestProbe(t *testing.T) {
	r := newRig(t)
	var findings []Finding
	probe := func() {
		if err := r.server.Do(func() error { findings = Probe(); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	probe()
	r.open(t, Config{}) // else the test is skipped
	for _, f := range findings {
		if f.Required && !f.OK {
			t.Errorf("%s: %s, and yet Open works", f.Name, f.Detail)
		}
		if f.OK != (f.Detail == "") {
			t.Errorf("%+v: a detail says what to do, and only then", f)
		}
	}
	for key, value := range map[string]string{
		"net.ipv4.tcp_syncookies": "0", "net.ipv4.conf.all.rp_filter": "1", "net.ipv4.tcp_sack": "0", "net.ipv4.tcp_timestamps": "0",
	} {
		was, err := r.server.Sysctl(key)
		if err != nil {
			t.Fatal(err)
		}
		r.sysctl(t, r.server, key, value)
		probe()
		missing := 0
		for _, f := range findings {
			if !f.OK && strings.Contains(f.Detail, key) {
				missing++
			}
		}
		if missing != 1 {
			t.Errorf("%s=%s: %d findings", key, value, missing)
		}
		r.sysctl(t, r.server, key, was)
	}
}

func TestProbeWithoutCapabilities(t *testing.T) {
	r := newRig(t)
	missing := 0
	r.powerless(t, func() {
		for _, f := range Probe() {
			if strings.HasPrefix(f.Name, "capability") && !f.OK && strings.Contains(f.Detail, "AmbientCapabilities") {
				missing++
			}
		}
	})
	if missing != 3 {
		t.Errorf("%d capabilities found missing, want 3", missing)
	}
}

// Many at once, from many goroutines, through few lanes, while the Injector is closed in the end.
func TestConcurrent(t *testing.T) {
	r := newRig(t, "net.core.somaxconn", "4096")
	in := r.open(t, Config{Lanes: 2})
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80")
	const connections = 200
	r.path(t, r.entryMAC)
	waiting := make([]peeked, connections)
	for i := range waiting {
		waiting[i] = r.peek(t, entry, ramp(t, 0, 10+i*50), false)
	}
	r.path(t, r.serverMAC)
	snapshots := make([]*tcprepair.Snapshot, connections)
	size := make(map[string]int)
	clients := make(map[string]*net.TCPConn)
	for i, p := range waiting {
		snapshots[i] = r.take(t, p)
		size[snapshots[i].Flow.Remote.String()] = 10 + i*50
		clients[snapshots[i].Flow.Remote.String()] = p.client
	}
	var wg sync.WaitGroup
	// Everyone tries every connection: one of them may succeed with each.
	const workers = 4
	made := make([][]error, workers)
	for w := range workers {
		made[w] = make([]error, connections)
		wg.Go(func() {
			for i := range snapshots {
				n := (i + w*7) % connections
				made[w][n] = in.Inject(snapshots[n])
			}
		})
	}
	wg.Wait()
	for i := range snapshots {
		ok := 0
		for w := range workers {
			switch err := made[w][i]; {
			case err == nil:
				ok++
			case !errors.Is(err, ErrExists):
				t.Fatal(err)
			}
		}
		if ok != 1 {
			t.Errorf("connection %d made %d times", i, ok)
		}
	}
	for range connections {
		c := accept(t, server)
		name := c.RemoteAddr().String()
		expect(t, "request", c, 0, size[name])
		send(t, "reply", c, 9, 20)
		expect(t, "reply", clients[name], 9, 20)
		undisturbed(t, clients[name])
	}
}

func TestCloseWhileInjecting(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{Lanes: 1, Patience: patience})
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80", option{unix.SOL_SOCKET, unix.SO_RCVBUF, 4096})
	client, s := r.snapshot(t, entry, ramp(t, 0, 64<<10), false)
	_, other := r.snapshot(t, entry, ramp(t, 0, 10), false)
	first, second, closed := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { first <- in.Inject(s) }() // has the lane, and waits for the server to read
	eventually(t, "the lane is taken", func() bool { return len(in.lanes) == 0 })
	go func() { second <- in.Inject(other) }()
	go func() { closed <- in.Close() }()
	if err := <-second; !errors.Is(err, ErrClosed) {
		t.Errorf("waiting for a lane: %v", err)
	}
	c := accept(t, server)
	expect(t, "request", c, 0, 64<<10)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	send(t, "reply", c, 0, 100)
	expect(t, "reply", client, 0, 100)
}

// A kernel without BPF tracepoints.
func TestWithoutOutcome(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	in.certain = false
	if err := in.links[0].Close(); err != nil {
		t.Fatal(err)
	}
	in.links = in.links[1:]
	entry := r.entryListener(t, at(r.vip4, 80))
	server := r.listen(t, "0.0.0.0:80")
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	if err := in.Inject(s); err != nil {
		t.Fatal(err)
	}
	converse(t, client, accept(t, server), 100)
	// A packet filter or the like on the way to TCP: here, the address goes.
	gone := *s
	gone.Flow = tcprepair.NewFlow(at(r.vip4.Next().Next(), 80), s.Flow.Remote)
	if err := in.Inject(&gone); !errors.Is(err, ErrUncertain) {
		t.Errorf("Inject: %v; want ErrUncertain", err)
	}
}

// What is dropped on the way to TCP is not made, and the error names the device. A program behind the Injector's stands in for a firewall.
func TestDropped(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	drop, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "rehome_drop", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // TCX_DROP
	})
	if err != nil {
		t.Fatal(err)
	}
	defer drop.Close()
	for _, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		l := r.listen(t, f.listen)
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		var firewall link.Link
		if err := r.server.Do(func() (err error) {
			firewall, err = link.AttachTCX(link.TCXOptions{
				Program: drop, Attach: ebpf.AttachTCXIngress, Interface: in.device.index, Anchor: link.Tail(),
			})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		err := in.Inject(s)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), in.Device()) {
			t.Errorf("Inject: %v; want ErrRefused, with the device", err)
		}
		if err := firewall.Close(); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		r.intact(t, in, client, s)
	}
}

// The kernel makes no connection to a client it cannot reach.
func TestNoRouteBack(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	for i, f := range r.families()[:2] {
		entry := r.entryListener(t, at(f.vip, 80))
		l := r.listen(t, f.listen)
		client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
		to := s.Flow.Remote.Addr()
		route := &netlink.Route{
			Type: unix.RTN_UNREACHABLE, Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())},
		}
		if err := in.nl.RouteAdd(route); err != nil {
			t.Fatal(err)
		}
		if err := in.Inject(s); !errors.Is(err, ErrAddress) {
			t.Errorf("%d: Inject: %v; want ErrAddress", i, err)
		}
		if err := in.nl.RouteDel(route); err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		r.intact(t, in, client, s)
	}
}

// The device is taken down under it.
func TestDeviceDown(t *testing.T) {
	r := newRig(t)
	in := r.open(t, Config{})
	entry := r.entryListener(t, at(r.vip4, 80))
	l := r.listen(t, "0.0.0.0:80")
	client, s := r.snapshot(t, entry, ramp(t, 0, 100), false)
	set := func(what string) {
		link, err := in.nl.LinkByName(in.Device())
		if err == nil && what == "down" {
			err = in.nl.LinkSetDown(link)
		} else if err == nil {
			err = in.nl.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set("down")
	if err := in.Inject(s); !errors.Is(err, ErrRefused) {
		t.Fatalf("Inject: %v; want ErrRefused", err)
	}
	set("up")
	_ = l.Close()
	r.intact(t, in, client, s)
}

// A host that steers packets of new devices to other CPUs.
func TestSteering(t *testing.T) {
	r := newRig(t)
	if runtime.NumCPU() < 2 {
		t.Skip("needs two CPUs")
	}
	if err := r.server.SetSysctl("net.core.rps_default_mask", "3"); err != nil {
		t.Skipf("needs Linux 6.3 with CONFIG_RPS: %v", err)
	}
	_, err := r.tryOpen(Config{})
	if errors.Is(err, ErrUnsupported) {
		t.Skip(err)
	}
	if !errors.Is(err, ErrSteering) {
		t.Errorf("Open: %v; want ErrSteering", err)
	}
}
