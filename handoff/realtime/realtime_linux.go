// SPDX-License-Identifier: Apache-2.0

package realtime

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// fifo is low among real-time priorities: above all ordinary threads is enough, and the kernel's own real-time threads come first.
	fifo = 10
	nice = -15
)

// Priority is what the kernel has granted.
type Priority uint8

// Priorities.
const (
	Ordinary Priority = iota // nothing: run it with CAP_SYS_NICE
	Nice                     // a better share of the processors, no more
	FIFO                     // before every ordinary thread
)

// String returns the priority in words.
func (p Priority) String() string {
	switch p {
	case Nice:
		return "nice"
	case FIFO:
		return "fifo"
	}
	return "ordinary"
}

// Enter binds the calling goroutine to its thread, for good, and gives the thread the best priority to be had. The error says why it is
// not FIFO.
func Enter() (Priority, error) {
	runtime.LockOSThread()
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Priority: fifo,
	}
	err := unix.SchedSetAttr(0, attr, 0)
	if err == nil {
		return FIFO, nil
	}
	err = fmt.Errorf("real-time priority (CAP_SYS_NICE): %w", err)
	if unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), nice) == nil {
		return Nice, err
	}
	return Ordinary, err
}
