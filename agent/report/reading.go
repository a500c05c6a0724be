// SPDX-License-Identifier: Apache-2.0

package report

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/rehome-net/rehome/handoff/vitals"
)

// reading is what the kernel said at one moment. A part that could not be read is nil.
type reading struct {
	at      time.Time
	cpu     *cpuTimes
	memory  *memory
	network []fill // of each protocol
	// stalled are from /proc/pressure: some waited for a disk, all waited for memory.
	stalledIO, stalledMemory *time.Duration
	disks                    map[string]uint32
	listeners                []listener
	listened                 bool // listeners could be read
}

// fill is pages in use and their limit.
type fill struct{ pages, limit uint64 }

// shares makes the parts of a load vector from two readings. Where one of them lacks something the part is Unknown.
func shares(last, now *reading, services []netip.AddrPort) (parts [vitals.Parts]vitals.Share) {
	passed := now.at.Sub(last.at)
	parts[vitals.CPU] = vitals.ShareOf(cpuShare(last.cpu, now.cpu))
	parts[vitals.Memory] = vitals.ShareOf(memoryShare(last, now, passed))
	parts[vitals.Network] = vitals.ShareOf(networkShare(now.network))
	parts[vitals.IO] = vitals.ShareOf(ioShare(last, now, passed))
	parts[vitals.Backlog] = vitals.ShareOf(backlogShare(now, services))
	parts[vitals.Application] = vitals.Unknown
	return parts
}

func cpuShare(last, now *cpuTimes) float64 {
	if last == nil || now == nil || now.total <= last.total || now.busy < last.busy {
		return math.NaN()
	}
	return float64(now.busy-last.busy) / float64(now.total-last.total)
}

func memoryShare(last, now *reading, passed time.Duration) float64 {
	if now.memory == nil {
		return math.NaN()
	}
	used := 1 - float64(now.memory.available)/float64(now.memory.total)
	if s := stallShare(last.stalledMemory, now.stalledMemory, passed); s > used {
		return s
	}
	return used
}

// stallShare is the share of the time in which tasks waited; NaN when not known.
func stallShare(last, now *time.Duration, passed time.Duration) float64 {
	if last == nil || now == nil || passed <= 0 || *now < *last {
		return math.NaN()
	}
	return float64(*now-*last) / float64(passed)
}

func networkShare(protocols []fill) float64 {
	share := math.NaN()
	for _, f := range protocols {
		share = larger(share, float64(f.pages)/float64(f.limit))
	}
	return share
}

func ioShare(last, now *reading, passed time.Duration) float64 {
	if s := stallShare(last.stalledIO, now.stalledIO, passed); !math.IsNaN(s) {
		return s
	}
	share := math.NaN()
	for name, busy := range now.disks {
		if was, ok := last.disks[name]; ok && passed > 0 {
			busyFor := time.Duration(busy-was) * time.Millisecond // also when the counter came round
			share = larger(share, float64(busyFor)/float64(passed))
		}
	}
	return share
}

func backlogShare(now *reading, services []netip.AddrPort) float64 {
	if !now.listened {
		return math.NaN()
	}
	share := math.NaN()
	for i := range now.listeners {
		l := &now.listeners[i]
		if slices.ContainsFunc(services, l.serves) {
			share = larger(share, l.fill())
		}
	}
	return share
}

// larger is max, but NaN is nothing.
func larger(a, b float64) float64 {
	if math.IsNaN(a) || b > a {
		return b
	}
	return a
}

// missing returns the addresses that nobody listens at; nil when that is not known.
func missing(now *reading, watched []netip.AddrPort) (without []netip.AddrPort) {
	if !now.listened {
		return nil
	}
	for _, at := range watched {
		if !slices.ContainsFunc(now.listeners, func(l listener) bool { return l.serves(at) }) {
			without = append(without, at)
		}
	}
	return without
}
