// SPDX-License-Identifier: Apache-2.0

// Package calm keeps Go's runtime from taking processor time just when a client waits for this process: for processes that
// mostly wait for others, and answer each other in chains of some 50 us for each link, as agents do and servers may.
//
//	if err := calm.Monitor(); err != nil { ... } // the process works as well, but its chains are longer
//	processors := calm.NewProcessors()
//	defer processors.Close()
//	processors.SetParallel(true) // there is work for more than one
//	go calm.CollectRarely(ctx)
//
// What it spares such a process, measured on two processors: the runtime's monitor, a thread of every Go process, looks around
// every 70 us or so while anything happens; of six processes that answer each other this is a fifth of the processors' time. And
// whenever something arrives, a process with more than one processor wakes a second thread, which finds nothing to do. A collection of a few MiB,
// which Go runs for every 4 MiB that are allocated, takes one of the processors for 1 to 2 ms.
//
// It is for programs without cgo: there, threads may exist that the runtime knows nothing of.
package calm
