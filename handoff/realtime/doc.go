// SPDX-License-Identifier: Apache-2.0

// Package realtime has the kernel run what must happen every 10 ms before what need not, also when all processors are busy.
//
// A whole process:
//
//	priority, err := realtime.Process() // first thing in main
//
// It asks for SCHED_FIFO (CAP_SYS_NICE, or RLIMIT_RTPRIO; in a container the cgroup must allow real-time too), else for a better nice
// value, else leaves things as they are, and says which it was. It is for a process that does little.
//
// One goroutine:
//
//	go func() {
//		priority, err := realtime.Enter() // the goroutine keeps the thread, which ends with it
//		…
//	}()
//
// That is less than it seems. When the goroutine comes back from a system call it needs one of Go's processors (GOMAXPROCS), and the
// runtime's locks; a thread of the same process that has them, and waits for a processor of the machine behind other processes, holds it
// up. Measured on 2 processors with 15 threads that want them, sleeping until every tenth millisecond, 20 s: late by at most 1 ms in C, by 0.7 ms
// in Go with Process, by 30 to 290 ms with Enter alone. So what must never be late belongs into a process of its own, and who can live with
// being late now and then, and notices it, can do with Enter.
//
// Threads that the runtime starts from one that has entered are ordinary ones (SCHED_FLAG_RESET_ON_FORK).
package realtime
