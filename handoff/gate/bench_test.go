// SPDX-License-Identifier: Apache-2.0

//go:build linux

package gate

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rehome-net/rehome/tcprepair"
)

func benchFlow(i int) tcprepair.Flow {
	client := netip.AddrFrom4([4]byte{192, 0, byte(i >> 23), byte(i >> 15)})
	return tcprepair.NewFlow(netip.MustParseAddrPort("198.51.100.1:80"), netip.AddrPortFrom(client, uint16(i&0x7fff)+1))
}

func BenchmarkHoldRelease(b *testing.B) {
	h := network(b, 1)[0]
	g := h.gated(b)
	i := 0
	for b.Loop() {
		f := benchFlow(i % 10000)
		i++
		if err := g.Hold(f, Ingress|Egress, time.Second); err != nil {
			b.Fatal(err)
		}
		if _, err := g.Release(f); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHoldAll(b *testing.B) {
	h := network(b, 1)[0]
	g := h.gated(b)
	flows := make([]tcprepair.Flow, 64)
	for i := range flows {
		flows[i] = benchFlow(i)
	}
	for b.Loop() {
		if err := g.HoldAll(Ingress|Egress, time.Second, flows...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(flows)), "ns/flow")
}

func BenchmarkCommit(b *testing.B) {
	h := network(b, 1)[0]
	g := h.gated(b)
	f := benchFlow(1)
	if _, err := g.Adopt(f, 1, 1); err != nil {
		b.Fatal(err)
	}
	epoch := uint32(1)
	for b.Loop() {
		if _, err := g.Commit(f, epoch, 1); err != nil {
			b.Fatal(err)
		}
		epoch++
	}
}

// BenchmarkReleaseHeld is the cost of a held frame: read from the tap, sorted, written back.
func BenchmarkReleaseHeld(b *testing.B) {
	h := network(b, 1)[0]
	g := h.gated(b)
	f := benchFlow(1)
	frame := ethernet(h.mac(b), etherIPv4, ip4(f, 0, 0, segment(f, ack, 1448)))
	const n = 100
	for b.Loop() {
		if err := g.Hold(f, Ingress, time.Minute); err != nil {
			b.Fatal(err)
		}
		g.mu.Lock()
		for range n {
			if err := g.taps[0].injectOne(frame, toTable); err != nil {
				b.Fatal(err)
			}
		}
		g.mu.Unlock()
		held, err := g.Release(f)
		if err != nil || held.Packets != n {
			b.Fatal(held, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/frame")
}

// BenchmarkSweep also reports the longest time for which a sweep keeps a processor from everybody else.
func BenchmarkSweep(b *testing.B) {
	for _, flows := range []int{0, 1 << 18} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			h := network(b, 1)[0]
			g, err := h.open(b, Config{Interfaces: []string{"eth0"}, MaxFlows: 1 << 20})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			fill(b, g, flows)
			var runs []float64
			for b.Loop() {
				s := gateSweep{Idle: uint64(time.Hour), Handshake: uint64(time.Hour), Mark: 1}
				for s.Begun == 0 || s.Left != 0 {
					start := time.Now()
					if err := g.table.sweepSome(&s); err != nil {
						b.Fatal(err)
					}
					runs = append(runs, float64(time.Since(start).Nanoseconds())/1e3)
				}
				if int(s.Live) != flows {
					b.Fatal(s)
				}
			}
			slices.Sort(runs)
			b.ReportMetric(runs[len(runs)/2], "run-us-median")
			b.ReportMetric(runs[len(runs)*99/100], "run-us-p99")
			b.ReportMetric(runs[len(runs)-1], "run-us-max")
		})
	}
}

func fill(b *testing.B, g *Gate, flows int) {
	b.Helper()
	for at := 0; at < flows; at += 1 << 10 {
		ops := make([]gateOperation, 0, 1<<10)
		for i := at; i < min(at+1<<10, flows); i++ {
			o := newOperation(gateCodeOP_ADOPT, benchFlow(i))
			o.Epoch, o.Node = 1, 9
			ops = append(ops, o)
		}
		if err := g.table.run(ops); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPacket reports, as ns/packet, what the kernel measures for the ingress program alone, with random flows. Taking
// the time costs as much as "not-ours" shows: subtract it.
func BenchmarkPacket(b *testing.B) {
	for _, flows := range []int{1 << 10, 1 << 17, 1 << 20} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			h := network(b, 1)[0]
			g, err := h.open(b, Config{Interfaces: []string{"eth0"}, MaxFlows: 1 << 21})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			mac := h.mac(b)
			if err := g.SetNode(9, h.index(b), net.HardwareAddr{2, 0, 0, 0, 0, 9}, mac); err != nil {
				b.Fatal(err)
			}
			fill(b, g, flows)
			random := rand.New(rand.NewPCG(1, 2))
			// BPF_PROG_RUN without a context is on lo, whose address is zero.
			frame := ethernet(make(net.HardwareAddr, 6), etherIPv4, ip4(benchFlow(0), 0, 0, segment(benchFlow(0), ack, 0)))
			aim := func(i int, server byte) []byte {
				f := benchFlow(i)
				copy(frame[14+12:], f.Remote.Addr().AsSlice())
				frame[14+19] = server
				binary.BigEndian.PutUint16(frame[14+20:], f.Remote.Port())
				return frame
			}
			ignored := slices.Concat(frame[:12], []byte{8, 6}, frame[14:])
			for _, c := range []struct {
				name string
				next func() []byte
			}{
				{"not-ours", func() []byte { return ignored }},
				{"miss", func() []byte { return aim(random.IntN(flows), 2) }},
				{"hit", func() []byte { return aim(random.IntN(flows), 1) }},
			} {
				b.Run(c.name, func(b *testing.B) {
					h.do(b, func() error {
						var in time.Duration
						for b.Loop() {
							// The kernel times the program alone, as an average over the repetitions; one is a cold look-up.
							_, took, err := g.table.objects.RehomeIn.Benchmark(c.next(), 1, nil)
							if err != nil {
								return err
							}
							in += took
						}
						b.ReportMetric(float64(in.Nanoseconds())/float64(b.N), "ns/packet")
						return nil
					})
				})
			}
		})
	}
}
