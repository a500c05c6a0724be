// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

const million = 1 << 20

// benchKey returns the i-th flow; every client has four.
func benchKey(i int) Key { return clientKey(i>>2, i&3) }

// clientKey returns the i-th flow of a client.
func clientKey(client, i int) Key {
	var c [4]byte
	binary.BigEndian.PutUint32(c[:], 0x0a000000+uint32(client))
	return Key{
		netip.AddrPortFrom(netip.AddrFrom4(c), uint16(40000+2*i)),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), uint16(554+i)), 17,
	}
}

// fill makes a table of n flows, four for each client and perSession for each session.
func fill(tb testing.TB, n, perSession int) *Table {
	tb.Helper()
	return fillWith(tb, n, perSession, benchKey)
}

// fillWith has the keys made. Of each session one flow is signalling, the others are secondary.
func fillWith(tb testing.TB, n, perSession int, key func(i int) Key) *Table {
	tb.Helper()
	table, err := New(start(), Config{MaxFlows: n})
	if err != nil {
		tb.Fatal(err)
	}
	var actions []Action
	for i := 0; i < n; i += perSession {
		var id ID
		id, actions, err = table.Open(start(), key(i), Terms{Server: Server(i % 7)}, actions[:0])
		if err != nil {
			tb.Fatal(err)
		}
		for j := i + 1; j < i+perSession; j++ {
			k := key(j)
			if actions, err = table.Announce(start(), id, []Announcement{{k.Client, k.Server, k.Protocol, "rtp"}}, actions); err != nil {
				tb.Fatal(err)
			}
			_, actions, _ = table.Touch(start(), k, actions)
		}
	}
	if got := table.Stats().Flows; got != n {
		tb.Fatalf("%d flows, want %d", got, n)
	}
	return table
}

// BenchmarkMemory reports what a flow takes, with its share of session, client and indexes: B/flow.
func BenchmarkMemory(b *testing.B) {
	for _, perSession := range []int{1, 4} {
		for _, perClient := range []int{1, 4} {
			b.Run(fmt.Sprintf("session=%d/client=%d", perSession, perClient), func(b *testing.B) {
				for b.Loop() {
					b.ReportMetric(bytesPerFlow(b, perSession, perClient), "B/flow")
				}
			})
		}
	}
}

// bytesPerFlow is by how much the process grows, as the kernel counts it, with a table of a million flows.
func bytesPerFlow(tb testing.TB, perSession, perClient int) float64 {
	tb.Helper()
	before := resident(tb)
	table := fillWith(tb, million, perSession, func(i int) Key { return clientKey(i/perClient, i%perClient) })
	after := resident(tb)
	release(tb, table)
	return float64(after-before) / million
}

// resident is how many bytes of memory the process has.
func resident(tb testing.TB) int {
	tb.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Skip("only Linux tells a process its size: ", err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		tb.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// BenchmarkLookup looks random flows up and reports the median of sixteen at a time. Their keys are there beforehand, so the CPU begins the next
// while the last waits for memory; of "alone" each waits for the one before. In "parallel" the time is that of all readers together, with the
// making of keys.
func BenchmarkLookup(b *testing.B) {
	const some = 16
	table, now := fill(b, million, 4), start()
	defer release(b, table)
	order := randomOrder()
	for _, c := range []struct {
		name     string
		do       func(*Key) (Server, bool)
		protocol uint8
		want     bool
		alone    bool
	}{
		{"lookup", func(k *Key) (Server, bool) { f, ok := table.Lookup(now, *k); return f.Server, ok }, 17, true, false},
		{"alone", func(k *Key) (Server, bool) { f, ok := table.Lookup(now, *k); return f.Server, ok }, 17, true, true},
		{"touch", func(k *Key) (Server, bool) { f, _, ok := table.Touch(now, *k, nil); return f.Server, ok }, 17, true, false},
		{"seen", func(k *Key) (Server, bool) { _, ok := table.Seen(now, *k, nil); return 0, ok }, 17, true, false},
		{"unknown", func(k *Key) (Server, bool) { f, ok := table.Lookup(now, *k); return f.Server, ok }, 6, false, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			took := make([]time.Duration, 0, million)
			keys := make([]Key, some)
			for at := 0; b.Loop(); at += some {
				for i := range keys {
					keys[i] = benchKey(int(order[(at+i)&(million-1)]))
					keys[i].Protocol = c.protocol
				}
				from := time.Now()
				for i := 0; i < some; i++ {
					server, ok := c.do(&keys[i])
					if ok != c.want {
						b.Fatal("not as wanted")
					}
					if c.alone {
						i += int(server) / 8 // nothing: there are seven servers, but that is known when the flow has come
					}
				}
				if len(took) < cap(took) {
					took = append(took, time.Since(from))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/some, "ns-median")
			b.ReportMetric(float64(took[len(took)*99/100])/some, "ns-p99")
		})
	}
	b.Run("parallel", func(b *testing.B) {
		var readers atomic.Int64
		b.RunParallel(func(pb *testing.PB) {
			random := rand.New(rand.NewPCG(uint64(readers.Add(1)), 3)) // none goes where another has just been
			for pb.Next() {
				if _, ok := table.Lookup(now, benchKey(random.IntN(million))); !ok {
					b.Error("not found")
					return
				}
			}
		})
	})
}

// randomOrder has numbers of flows. Numbers are kept and not keys, which would need more of the CPU's cache than the table.
func randomOrder() []uint32 {
	random := rand.New(rand.NewPCG(1, 2))
	order := make([]uint32, million)
	for i := range order {
		order[i] = random.Uint32N(million)
	}
	return order
}

// BenchmarkOpen fills tables with a million sessions of one flow, of one client each, and reports the median of sixteen at a time, and the longest
// stop: each sixteen are taken in three tables, and their shortest time counts.
func BenchmarkOpen(b *testing.B) {
	var actions []Action
	for b.Loop() {
		took := make([]time.Duration, million/16)
		for range 3 {
			table, err := New(start(), Config{MaxFlows: million})
			if err != nil {
				b.Fatal(err)
			}
			runtime.GC()
			for i := range took {
				from := time.Now()
				for j := range 16 {
					if _, actions, err = table.Open(start(), clientKey(16*i+j, 0), Terms{}, actions[:0]); err != nil {
						b.Fatal(err)
					}
				}
				if d := time.Since(from); took[i] == 0 || d < took[i] {
					took[i] = d
				}
			}
			release(b, table)
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2])/16, "ns-median")
		b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1000, "us-max")
	}
}

// BenchmarkPurge reports the longest of a round's steps of 256, and the median: nothing to do, and everything overdue. Each step is taken in five
// equal tables, and its shortest time counts: what the machine does meanwhile is not the step's.
func BenchmarkPurge(b *testing.B) {
	for _, c := range []struct {
		name string
		now  time.Time
	}{{"nothing", start()}, {"everything", start().Add(time.Hour)}} {
		b.Run(c.name, func(b *testing.B) {
			actions := make([]Action, 0, 4096)
			for b.Loop() {
				took := make([]time.Duration, million/256+1)
				for range 5 {
					table := fill(b, million, 4)
					runtime.GC()
					for i := range took {
						from := time.Now()
						actions = table.Purge(c.now, 256, actions[:0])
						if d := time.Since(from); took[i] == 0 || d < took[i] {
							took[i] = d
						}
					}
					release(b, table)
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "us-median")
				b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1000, "us-max")
			}
		})
	}
}

// BenchmarkSession is a session's life in a table of a million flows: opened, announced, confirmed, withdrawn, ended.
func BenchmarkSession(b *testing.B) {
	table := fill(b, million, 4)
	defer release(b, table)
	if _, ok := table.End(benchKey(0), nil); !ok {
		b.Fatal("no flow")
	}
	id := table.id(1)
	actions, err := table.Close(id, nil)
	if err != nil {
		b.Fatal(err)
	}
	list, now := make([]Announcement, 2), start()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		key := benchKey(million + 4*(i&0xfffff))
		i++
		for j := range list {
			k := benchKey(million + 4*(i&0xfffff) + 1 + j)
			list[j] = Announcement{k.Client, k.Server, k.Protocol, "rtp"}
		}
		if id, actions, err = table.Open(now, key, Terms{}, actions[:0]); err != nil {
			b.Fatal(err)
		}
		if actions, err = table.Announce(now, id, list, actions); err != nil {
			b.Fatal(err)
		}
		for _, a := range list {
			var ok bool
			if _, actions, ok = table.Touch(now, Key{a.Client, a.Server, a.Protocol}, actions); !ok {
				b.Fatal("announced flow is unknown")
			}
		}
		if actions, err = table.Withdraw(id, list, actions); err != nil {
			b.Fatal(err)
		}
		actions, _ = table.End(key, actions)
	}
}
