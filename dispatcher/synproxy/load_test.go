// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/handoff/gate"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// front is the proxy in a farm's dispatcher's place: it serves the files of nginx.
type front struct {
	t testing.TB
	// plain leaves out all but the forwarder, which sends SYNs to the node at once: what no dispatcher at layer 2 can be better than.
	plain  bool
	proxy  *Proxy
	accept *cookie.Acceptor
	stop   func()
}

func (f *front) Name() string {
	if f.plain {
		return "forwarder"
	}
	return "socketless"
}

func (f *front) Programs() []string { return nil }

func (f *front) Start(ctx context.Context, farm *scenario.Farm) error {
	vips := farm.Lab.Topology().VIPs
	entry, err := farm.Lab.Host(scenario.FrontHost)
	if err != nil {
		return err
	}
	server, err := farm.Lab.Host(scenario.Files.Host())
	if err != nil {
		return err
	}
	secret := cookie.Secret{7}
	here, there := locate(f.t, entry), locate(f.t, server)
	late := &lateTable{}
	var forwarder *forward.Forwarder
	err = errors.Join(
		entry.Do(func() (err error) {
			f.proxy, err = Open(Config{
				Interface: "eth0", Parameters: cookie.Parameters{Secret: secret}, Table: late,
				Decide: func(Request) Decision { return Decision{Verb: Forward, Node: 1} },
			})
			if err != nil {
				return err
			}
			forwarder, err = forward.Open(forward.Config{Interfaces: []string{"eth0"}, MaxFlows: 1 << 17})
			return err
		}),
		server.Do(func() (err error) {
			f.accept, err = cookie.Open(cookie.Config{Interface: "eth0", Parameters: cookie.Parameters{Secret: secret}})
			return err
		}),
	)
	if err != nil {
		return err
	}
	late.Table = forwarder
	err = errors.Join(forwarder.SetNode(1, here.index, there.mac, here.mac), f.proxy.SetNode(1, here.index, there.mac, here.mac))
	for _, vip := range vips {
		at := netip.AddrPortFrom(vip, scenario.Files.Port())
		if f.plain {
			err = errors.Join(err, forwarder.SetService(at, []gate.Node{1}))
			continue
		}
		err = errors.Join(err, f.proxy.AddService(at), f.accept.AddService(at))
	}
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 2)
	go func() { done <- f.proxy.Run(run) }()
	go func() {
		done <- f.accept.Run(run, func(r cookie.Report) { f.t.Logf("report: %v: %v", r.Flow, r.Reason) })
	}()
	f.stop = func() {
		cancel()
		if err := errors.Join(<-done, <-done, f.proxy.Close(), forwarder.Close(), f.accept.Close()); err != nil {
			f.t.Error(err)
		}
	}
	return nil
}

func (f *front) Stop() error {
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
	return nil
}

func (f *front) Target(farm *scenario.Farm, s scenario.Service, v6 bool) (netip.AddrPort, error) {
	if s != scenario.Files {
		return netip.AddrPort{}, scenario.ErrNotServed
	}
	vip := farm.Lab.Topology().VIP4()
	if v6 {
		vip = farm.Lab.Topology().VIP6()
	}
	return netip.AddrPortFrom(vip, s.Port()), nil
}

var _ scenario.Front = (*front)(nil)

func startFarm(b testing.TB) *scenario.Farm {
	b.Helper()
	for _, program := range append(scenario.FarmPrograms(), "wrk", "haproxy") {
		if _, err := exec.LookPath(program); err != nil {
			b.Skip(err)
		}
	}
	command := os.Getenv("REHOME")
	if command == "" {
		b.Skip("REHOME is not set to the binary, which serves in the farm")
	}
	f, err := scenario.StartFarm(b.Context(), scenario.FarmConfig{Command: []string{command}, Lab: fmt.Sprintf("rhsyn%d", os.Getpid())})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := f.Close(); err != nil {
			b.Error(err)
		}
	})
	return f
}

// processTime is what this process has used, in all of its threads.
func processTime(b testing.TB) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// groupTime is what the control group has used that the benchmark was started in: client, server, front and all the kernel did for them. Per connection,
// that depends little on what else the machine does. CPUACCT names the group's file cpuacct.usage; without it, there is no such figure.
func groupTime(b testing.TB) time.Duration {
	b.Helper()
	path := os.Getenv("CPUACCT")
	if path == "" {
		return 0
	}
	text, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return time.Duration(n)
}

// The figures of one run can be compared: fronts take turns, and each one's median counts.
func BenchmarkFronts(b *testing.B) {
	f := startFarm(b)
	figures := make(map[string]map[string][]float64)
	const rounds = 3
	fronts := []scenario.Front{scenario.Direct(), &front{t: b, plain: true}, &front{t: b}, scenario.HAProxyHTTP(), scenario.HAProxyTCP()}
	for range rounds {
		for _, front := range fronts {
			got := measure(b, f, front)
			if figures[front.Name()] == nil {
				figures[front.Name()] = make(map[string][]float64)
			}
			for unit, v := range got {
				figures[front.Name()][unit] = append(figures[front.Name()][unit], v)
			}
		}
	}
	for _, front := range fronts {
		b.Run(front.Name(), func(b *testing.B) {
			for unit, v := range figures[front.Name()] {
				slices.Sort(v)
				b.ReportMetric(v[len(v)/2], unit)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func measure(b *testing.B, f *scenario.Farm, front scenario.Front) map[string]float64 {
	if err := front.Start(b.Context(), f); err != nil {
		b.Fatal(err)
	}
	got := make(map[string]float64)
	if front.Name() != "direct" {
		l, err := scenario.MeasureLatency(b.Context(), f, front, 2000)
		if err != nil {
			b.Fatal(err)
		}
		got["added-us-median"], got["added-us-p99"], got["direct-us-median"] = float64(l.Median), float64(l.P99), float64(l.Direct.Total.Median)
	}
	used := groupTime(b)
	before, began := processTime(b), time.Now()
	l, err := scenario.MeasureLoad(b.Context(), f, front, scenario.LoadConfig{NewConnections: true, Time: 3 * time.Second})
	if err != nil {
		b.Fatal(err)
	}
	got["cpu-%"] = 100 * float64(processTime(b)-before) / float64(time.Since(began))
	if used > 0 {
		got["machine-us/conn"] = float64((groupTime(b) - used).Microseconds()) / float64(l.Requests)
	}
	got["conns/s"], got["failed"], got["answer-us-median"] = l.PerSecond, float64(l.Failed()), float64(l.Median)
	if own, ok := front.(interface{ report(testing.TB) }); ok {
		own.report(b)
	}
	if err := front.Stop(); err != nil {
		b.Fatal(err)
	}
	return got
}

func (f *front) report(b testing.TB) {
	s, err := f.proxy.Stats()
	if err != nil {
		b.Fatal(err)
	}
	a, err := f.accept.Stats()
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("proxy %+v", s)
	b.Logf("acceptor %+v", a)
}

// One front alone, for a profiler.
func BenchmarkProfile(b *testing.B) {
	for _, front := range []scenario.Front{scenario.Direct(), &front{t: b}, scenario.HAProxyHTTP()} {
		b.Run(front.Name(), func(b *testing.B) {
			f := startFarm(b)
			if err := front.Start(b.Context(), f); err != nil {
				b.Fatal(err)
			}
			l, err := scenario.MeasureLoad(b.Context(), f, front, scenario.LoadConfig{NewConnections: true, Time: 6 * time.Second})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(l.PerSecond, "conns/s")
			if err := front.Stop(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
