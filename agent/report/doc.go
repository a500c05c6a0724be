// SPDX-License-Identifier: Apache-2.0

// Package report tells dispatchers that this host is alive, and how loaded it is (SARA 24-25, 29), in the datagrams of package
// handoff/vitals.
//
//	reporter, err := report.New(report.Config{Host: 7, Dispatchers: addrs, Key: key, Interval: 10 * time.Millisecond})
//	go reporter.Run(ctx)
//	reporter.SetDown("files", true)                     // application down: dispatchers know at once
//	reporter.SetLoad("files", 0.8)                      // what an application says of itself
//	reporter.Announce(time.Now().Add(10 * time.Minute)) // planned failure: drain, and down by then
//
// # Heartbeats
//
// One thread sends them, of real-time priority where that is allowed (package handoff/realtime), at the times begin + k·d: when it comes
// late, the next one is not. What changes what they say is sent at once, and again with the next. When Run ends it says so, as a
// failure planned for now.
//
// # The load vector
//
// Read from the kernel by an ordinary goroutine, each part from 0 to 1:
//
//	part         read from                                   is
//	cpu          /proc/stat                                  time not idle, of all processors' time since the last vector
//	memory       /proc/meminfo, /proc/pressure/memory        1 - MemAvailable/MemTotal, or, if more, the share of time in which all waited for memory
//	network      /proc/net/sockstat, net.ipv4.tcp_mem, udp_mem    pages in socket buffers, of the limit; the fuller of TCP and UDP
//	io           /proc/pressure/io, else /proc/diskstats     share of time in which somebody waited for a disk; else in which the busiest disk was busy
//	backlog      sock_diag                                   connections that wait for accept(), of the listener's backlog; the fullest
//	application  SetLoad                                     the highest that was set
//
// Time that a hypervisor took away counts as used. All of it is the machine's, not a container's. A part that cannot be read is
// unknown, and is left out of l: tcp_mem is there in the first network namespace only, pressure only where the kernel keeps it (psi=1).
//
// What it does not do: it hears nothing, and does not know who listens.
package report
