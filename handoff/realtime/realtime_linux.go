// SPDX-License-Identifier: Apache-2.0

package realtime

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// fifo is low among real-time priorities: above all ordinary threads is enough, and the kernel's own real-time threads come first.
	fifo = 10
	nice = -20
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

// maxPasses bounds the search for threads that were started meanwhile by one that was not found yet.
const maxPasses = 100

// Process gives every thread of the process the best priority to be had, and so all that they start. It is for a process that has
// nothing else to do: another would keep the machine from everybody. The error says why it is not FIFO.
func Process() (Priority, error) {
	fifoErr := eachThread(func(tid int) error {
		return unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: fifo}, 0)
	})
	if fifoErr == nil {
		return FIFO, nil
	}
	fifoErr = fmt.Errorf("real-time priority (CAP_SYS_NICE): %w", fifoErr)
	if err := eachThread(func(tid int) error { return unix.Setpriority(unix.PRIO_PROCESS, tid, nice) }); err != nil {
		return Ordinary, fifoErr
	}
	return Nice, fifoErr
}

// eachThread calls f once for every thread of the process.
func eachThread(f func(tid int) error) error {
	done := make(map[int]bool)
	for range maxPasses {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		found := false
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return fmt.Errorf("/proc/self/task: %w", err)
			}
			if done[tid] {
				continue
			}
			done[tid], found = true, true
			if err := f(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !found {
			return nil
		}
	}
	return errors.New("threads come and go")
}
