// SPDX-License-Identifier: Apache-2.0

package synproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rehome-net/rehome/dispatcher/forward"
	"github.com/rehome-net/rehome/handoff/cookie"
	"github.com/rehome-net/rehome/netns-lab/scenario"
)

// front is the proxy in a farm's dispatcher's place: it serves the files of nginx.
type front struct {
	t      testing.TB
	proxy  *Proxy
	accept *cookie.Acceptor
	stop   func()
}

func (f *front) Name() string       { return "socketless" }
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
		err = errors.Join(err, f.proxy.AddService(at), f.accept.AddService(at))
	}
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 2)
	go func() { done <- f.proxy.Run(run) }()
	go func() { done <- f.accept.Run(run, func(r cookie.Report) { f.t.Logf("report: %v: %v", r.Flow, r.Reason) }) }()
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

func started(b testing.TB, f *scenario.Farm, front scenario.Front) {
	b.Helper()
	if err := front.Start(b.Context(), f); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := front.Stop(); err != nil {
			b.Error(err)
		}
	})
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

// The figures of one run can be compared: connections per second with a new one for each request, and latency.
func BenchmarkFronts(b *testing.B) {
	f := startFarm(b)
	for _, front := range []scenario.Front{scenario.Direct(), &front{t: b}, scenario.HAProxyHTTP(), scenario.HAProxyTCP()} {
		b.Run(front.Name(), func(b *testing.B) {
			started(b, f, front)
			if front.Name() != "direct" {
				l, err := scenario.MeasureLatency(b.Context(), f, front, 2000)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(l.Median), "added-us-median")
				b.ReportMetric(float64(l.P99), "added-us-p99")
				b.ReportMetric(float64(l.Direct.Total.Median), "direct-us-median")
			}
			before := processTime(b)
			began := time.Now()
			l, err := scenario.MeasureLoad(b.Context(), f, front, scenario.LoadConfig{NewConnections: true})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(100*float64(processTime(b)-before)/float64(time.Since(began)), "cpu-%-of-one")
			b.ReportMetric(l.PerSecond, "conns/s")
			b.ReportMetric(float64(l.Failed()), "failed")
			b.ReportMetric(float64(l.Median), "answer-us-median")
			b.ReportMetric(0, "ns/op")
			if own, ok := front.(interface{ report(testing.TB) }); ok {
				own.report(b)
			}
		})
	}
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

