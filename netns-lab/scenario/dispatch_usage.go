// SPDX-License-Identifier: Apache-2.0

package scenario

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the processor time, user's and system's, that processes have used, to the nanosecond. The system's part
// contains the softirqs that ran on their stacks, also for other hosts; those of ksoftirqd and of interrupts are nobody's.
func cpuTime(pids []int) (time.Duration, error) {
	var total time.Duration
	for _, pid := range pids {
		// The clock of another process: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.h.
		const sched = 2
		var ts unix.Timespec
		err := unix.ClockGettime(int32(^pid<<3|sched), &ts)
		if errors.Is(err, unix.EINVAL) {
			return 0, fmt.Errorf("process %d has ended: its processor time is lost", pid)
		}
		if err != nil {
			return 0, os.NewSyscallError("clock_gettime", err)
		}
		total += time.Duration(ts.Nano())
	}
	return total, nil
}

// machineTime returns how long the machine's processors have been busy, in whatever context.
func machineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachineTime(text)
}

// parseMachineTime reads the first line of /proc/stat: user nice system idle iowait irq softirq steal, in ticks.
func parseMachineTime(text []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(text, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat: %q", line)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that Go knows
	var busy time.Duration
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 {
			busy += time.Duration(n) * tick
		}
	}
	return busy, nil
}

// memory returns what processes have allocated and is in memory, shared pages divided among those that share them (Pss_Anon, Linux 5.4), in
// bytes. Their program and libraries are not in it: what they count for depends on who else runs them.
func memory(pids []int) (int64, error) {
	var total int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		n, err := parseAnonymous(text)
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		total += n
	}
	return total, nil
}

func parseAnonymous(text []byte) (int64, error) {
	scan := bufio.NewScanner(bytes.NewReader(text))
	for scan.Scan() {
		fields := strings.Fields(scan.Text())
		if len(fields) == 3 && fields[0] == "Pss_Anon:" {
			n, err := strconv.ParseInt(fields[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("smaps_rollup: no line Pss_Anon: needs Linux 5.4")
}

// sockets returns how many sockets processes have open.
func sockets(pids []int) (int, error) {
	n := 0
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd/", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		for _, e := range entries {
			if target, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
				n++
			}
		}
	}
	return n, nil
}
