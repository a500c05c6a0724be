// SPDX-License-Identifier: Apache-2.0

package report

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// errFormat is a file of the kernel's that does not look as expected.
var errFormat = errors.New("not as expected")

// cpuTimes are clock ticks of all processors since the machine started.
type cpuTimes struct{ busy, total uint64 }

// parseStat reads the first line of /proc/stat (proc_stat(5)): user nice system idle iowait irq softirq steal; guests' time is part of
// user's and nice's. Waiting for a disk is idle here: it is io's.
func parseStat(text string) (cpuTimes, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return cpuTimes{}, fmt.Errorf("/proc/stat: %w: %.40q", errFormat, line)
	}
	var t cpuTimes
	for i, f := range fields[1:9] {
		n, err := strconv.ParseUint(f, 10, 60) // eight of them must not overflow
		if err != nil {
			return cpuTimes{}, fmt.Errorf("/proc/stat: %w: %.40q", errFormat, f)
		}
		t.total += n
		if i != 3 && i != 4 {
			t.busy += n
		}
	}
	return t, nil
}

// memory is in kB.
type memory struct{ total, available uint64 }

// parseMeminfo reads /proc/meminfo. MemAvailable is the kernel's estimate of what can be had without swapping.
func parseMeminfo(text string) (m memory, err error) {
	seen := 0
	for line := range strings.Lines(text) {
		var into *uint64
		name, value, _ := strings.Cut(line, ":")
		switch name {
		case "MemTotal":
			into = &m.total
		case "MemAvailable":
			into = &m.available
		default:
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(value), " ")
		if *into, err = strconv.ParseUint(number, 10, 63); err != nil || unit != "kB" {
			return memory{}, fmt.Errorf("/proc/meminfo: %w: %.40q", errFormat, line)
		}
		seen++
	}
	if seen != 2 || m.total == 0 || m.available > m.total {
		return memory{}, fmt.Errorf("/proc/meminfo: %w: no MemTotal and MemAvailable that fit", errFormat)
	}
	return m, nil
}

// parseSockstat reads /proc/net/sockstat: pages in the buffers of a protocol's sockets, "TCP" or "UDP".
func parseSockstat(text, protocol string) (pages uint64, err error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != protocol+":" {
			continue
		}
		for i := 1; i+1 < len(fields); i += 2 {
			if fields[i] == "mem" {
				if pages, err = strconv.ParseUint(fields[i+1], 10, 63); err == nil {
					return pages, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("/proc/net/sockstat: %w: no mem of %s", errFormat, protocol)
}

// parseLimit reads net.ipv4.tcp_mem or udp_mem, three numbers of pages: the last is where the kernel refuses memory.
func parseLimit(text string) (pages uint64, err error) {
	fields := strings.Fields(text)
	if len(fields) == 3 {
		if pages, err = strconv.ParseUint(fields[2], 10, 63); err == nil && pages > 0 {
			return pages, nil
		}
	}
	return 0, fmt.Errorf("limit of pages: %w: %.40q", errFormat, text)
}

// parsePressure reads a file of /proc/pressure (Documentation/accounting/psi.rst): for how long, since the machine started, "some" or
// "full" of the tasks that had work waited.
func parsePressure(text, which string) (time.Duration, error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != which {
			continue
		}
		for _, f := range fields[1:] {
			if value, ok := strings.CutPrefix(f, "total="); ok {
				us, err := strconv.ParseUint(value, 10, 63)
				if err == nil && us <= uint64(1<<63-1)/uint64(time.Microsecond) {
					return time.Duration(us) * time.Microsecond, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("pressure: %w: no total of %q", errFormat, which)
}

// maxDisks bounds what is remembered between two readings.
const maxDisks = 4096

// parseDiskstats reads /proc/diskstats: for how long each device has had requests to do, since the machine started (field 13 of
// Documentation/admin-guide/iostats.rst, in milliseconds, 32 bits).
func parseDiskstats(text string) (map[string]uint32, error) {
	busy := make(map[string]uint32)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 14 {
			return nil, fmt.Errorf("/proc/diskstats: %w: %.40q", errFormat, line)
		}
		ms, err := strconv.ParseUint(fields[12], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("/proc/diskstats: %w: %.40q", errFormat, fields[12])
		}
		if len(busy) < maxDisks {
			busy[fields[2]] = uint32(ms)
		}
	}
	return busy, nil
}
