// SPDX-License-Identifier: Apache-2.0

package calm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

// lateness is how much later than it wishes the runtime's monitor may be woken. It wishes for 20 us at first and for 10 ms when
// nothing has needed it for long, so it must cope with much more; what it does late is to give the processor of a goroutine
// that is in a long system call, or that runs for over 10 ms, to another one.
const lateness = 300 * time.Microsecond

// Monitor lets the kernel wake the runtime's monitor later than it asks, until the process ends. It wants CAP_SYS_NICE.
func Monitor() error {
	tid, err := monitor()
	if err != nil {
		return fmt.Errorf("find the runtime's monitor: %w", err)
	}
	if err := setSlack(tid, lateness); err != nil {
		return fmt.Errorf("set the timer slack of the runtime's monitor (CAP_SYS_NICE): %w", err)
	}
	return nil
}

// monitor returns the thread of the runtime's monitor (sysmon): the first that a Go program starts. The kernel lists threads in the
// order in which they were started, whatever their numbers are.
func monitor() (int, error) {
	d, err := os.Open("/proc/self/task")
	if err != nil {
		return 0, err
	}
	defer d.Close() //nolint:errcheck // nothing was written
	names, err := d.Readdirnames(2)
	if err != nil {
		return 0, err
	}
	if len(names) < 2 || names[0] != strconv.Itoa(os.Getpid()) {
		return 0, errors.New("the process has no second thread")
	}
	return strconv.Atoi(names[1])
}

// slackPath is the file of a thread's timer slack (proc_pid_timerslack_ns(5), Linux 4.6). It is not in /proc/self/task.
func slackPath(tid int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", tid) }

func setSlack(tid int, d time.Duration) error {
	return os.WriteFile(slackPath(tid), []byte(strconv.FormatInt(d.Nanoseconds(), 10)), 0)
}
