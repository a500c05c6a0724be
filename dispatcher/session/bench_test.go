// SPDX-License-Identifier: Apache-2.0

package session

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
)

const million = 1 << 20

// benchKey returns the i-th flow; every client has four.
func benchKey(i int) Key {
	var c [4]byte
	binary.BigEndian.PutUint32(c[:], 0x0a000000|uint32(i>>2))
	return Key{
		netip.AddrPortFrom(netip.AddrFrom4(c), uint16(40000+2*(i&3))),
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), uint16(554+i&3)), 17,
	}
}

// fill makes a table of n flows: sessions of one signalling and perSession-1 announced ones, of which all are confirmed.
func fill(tb testing.TB, n, perSession int) *Table {
	tb.Helper()
	table, err := New(start(), Config{MaxFlows: n})
	if err != nil {
		tb.Fatal(err)
	}
	var actions []Action
	for i := 0; i < n; i += perSession {
		var id ID
		id, actions, err = table.Open(start(), benchKey(i), Terms{Server: Server(i % 7)}, actions[:0])
		if err != nil {
			tb.Fatal(err)
		}
		for j := i + 1; j < i+perSession; j++ {
			k := benchKey(j)
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

// BenchmarkMemory reports what a flow takes, with its share of session, client and indexes: B/flow. A session of its own for each flow, and
// four flows a session.
func BenchmarkMemory(b *testing.B) {
	for _, perSession := range []int{1, 4} {
		b.Run(fmt.Sprintf("%d", perSession), func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(bytesPerFlow(b, perSession), "B/flow")
			}
		})
	}
}

func bytesPerFlow(tb testing.TB, perSession int) float64 {
	tb.Helper()
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	table := fill(tb, million, perSession)
	after := heap()
	runtime.KeepAlive(table)
	return float64(after-before) / million
}

// BenchmarkLookup looks random flows up and reports the median of sixteen at a time.
func BenchmarkLookup(b *testing.B) {
	table, now := fill(b, million, 4), start()
	random := rand.New(rand.NewPCG(1, 2))
	// Numbers are kept and not keys, which would need more of the CPU's cache than the table.
	order := make([]uint32, million)
	for i := range order {
		order[i] = random.Uint32N(million)
	}
	for _, c := range []struct {
		name     string
		do       func(Key) bool
		protocol uint8
		want     bool
	}{
		{"lookup", func(k Key) bool { _, ok := table.Lookup(now, k); return ok }, 17, true},
		{"touch", func(k Key) bool { _, _, ok := table.Touch(now, k, nil); return ok }, 17, true},
		{"seen", func(k Key) bool { _, ok := table.Seen(now, k, nil); return ok }, 17, true},
		{"unknown", func(k Key) bool { _, ok := table.Lookup(now, k); return ok }, 6, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var took []time.Duration
			i := 0
			for b.Loop() {
				from := time.Now()
				for range 16 {
					key := benchKey(int(order[i&(million-1)]))
					key.Protocol = c.protocol
					i++
					if c.do(key) != c.want {
						b.Fatal("not as wanted")
					}
				}
				took = append(took, time.Since(from))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/16, "ns-median")
			b.ReportMetric(float64(took[len(took)*99/100])/16, "ns-p99")
		})
	}
}

// BenchmarkPurge reports the longest of the steps: nothing to do, and everything overdue.
func BenchmarkPurge(b *testing.B) {
	for _, c := range []struct {
		name string
		now  time.Time
	}{{"nothing", start()}, {"everything", start().Add(time.Hour)}} {
		b.Run(c.name, func(b *testing.B) {
			var took []time.Duration
			actions := make([]Action, 0, 4096)
			for b.Loop() {
				b.StopTimer()
				table := fill(b, million, 4)
				runtime.GC()
				b.StartTimer()
				for range million/1024 + 1 {
					from := time.Now()
					actions = table.Purge(c.now, 1024, actions[:0])
					took = append(took, time.Since(from))
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "us-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "us-p99")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "us-max")
		})
	}
}

// BenchmarkSession is a session's life beside a million flows: opened, announced, confirmed, withdrawn, ended.
func BenchmarkSession(b *testing.B) {
	table := fill(b, million, 4)
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
