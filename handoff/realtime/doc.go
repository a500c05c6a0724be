// SPDX-License-Identifier: Apache-2.0

// Package realtime gives a goroutine a thread of its own that the kernel runs before others, so that what must happen every 10 ms does
// so also when all processors are busy.
//
//	go func() {
//		priority, err := realtime.Enter() // the goroutine keeps the thread, which ends with it
//		…
//	}()
//
// It asks for SCHED_FIFO (CAP_SYS_NICE, or RLIMIT_RTPRIO; in a container the cgroup must allow real-time too), else for a better nice
// value, else leaves things as they are, and says which it was. Threads that the runtime starts from this one are ordinary ones
// (SCHED_FLAG_RESET_ON_FORK).
//
// What it does not do: Go's scheduler still gives the goroutine its turn when it comes back from a system call. If the process itself
// keeps all of GOMAXPROCS busy, that can take 10 ms and more.
package realtime
