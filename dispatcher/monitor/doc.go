// SPDX-License-Identifier: Apache-2.0

// Package monitor receives what servers tell of themselves (package handoff/vitals), and feeds the engines that judge it: an
// availability.Detector and a load.Manager.
//
//	m, err := monitor.Open(monitor.Config{Keys: keys, Changed: func(e availability.Event) { … }})
//	m.SetHosts([]uint32{7, 8})
//	go m.Run(ctx)
//	host, ok := m.Host(7)            // from any goroutine, without a lock
//	if ok && host.Status.State.TakesSessions() && host.LoadKnown { … }
//
// One thread, of real-time priority where it is allowed, owns the engines. It wakes when something arrives or a deadline comes, reads
// everything that had arrived by then, and only then looks at the clock: a datagram that waited in the socket's buffer counts from when
// it arrived, which the kernel has noted (SO_TIMESTAMPNS). If the thread finds that it was not running when it should have been, for
// half an interval or more, and that nothing arrived meanwhile from anybody, it tells the engines that it was blind for so long: on a machine
// that stood still datagrams may be late as well.
//
// What does not carry a good MAC, is old, or was seen already is refused and counted by reason (Stats). It never reaches an engine.
package monitor
