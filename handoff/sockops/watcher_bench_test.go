// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sockops

import (
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	netnslab "github.com/rehome-net/rehome/netns-lab"
)

// BenchmarkConnection makes a connection and resets it: without a watcher, with one of another service, with its own that is read every
// 10 ms, and with its own that is read at once, so that each end has to wake the reader. bpf-ns/op is the program alone.
func BenchmarkConnection(b *testing.B) {
	f := newField(b, netnslab.Impairment{})
	at, other := netip.AddrPortFrom(f.vip4, 80), netip.AddrPortFrom(f.vip4, 81)
	for _, c := range []struct {
		name    string
		service netip.AddrPort
		pause   time.Duration
	}{
		{name: "unwatched"},
		{name: "other", service: other},
		{name: "watched", service: at, pause: 10 * time.Millisecond},
		{name: "eagerly", service: at},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := listen(b, f.a, at)
			defer l.Close()
			var log *log
			if c.service.IsValid() {
				log = watchEvery(b, c.pause, f.a, c.service)
				stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
				if err != nil {
					b.Fatal(err)
				}
				defer stats.Close()
			}
			// One namespace is entered once, not for each connection.
			err := f.client.Do(func() error {
				for b.Loop() {
					if err := visit(at, l); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			if log == nil {
				return
			}
			spent, err := log.w.objects.RehomeEnded.Stats()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(spent.Runtime.Nanoseconds())/float64(b.N), "bpf-ns/op")
			b.ReportMetric(float64(spent.RunCount)/float64(b.N), "bpf-runs/op")
			if c.service != at {
				return
			}
			for range b.N {
				log.next(b)
			}
			log.none(b)
		})
	}
}
