// SPDX-License-Identifier: Apache-2.0

// Package netnslab builds small networks out of Linux network namespaces and measures what happens in them. A lab is a set of hosts on one switch:
//
//	client ──┐            every host is a namespace rh-<lab>-<host> that ip-netns(8) sees, with one interface, eth0
//	entry  ──┤ switch     the switch is a bridge in a namespace of its own, rh-<lab>-switch
//	a, b   ──┘
//
// The virtual addresses are on lo of every server, which do not answer ARP or neighbour discovery for them, and on eth0 of the entry, which does. So a
// client's packets to a virtual address reach the entry, and any server can answer them straight back.
//
// # Building and taking down
//
// A Topology is data; Standard returns the usual one. Build makes a Lab from it, or nothing at all. Close takes it down, with the processes that were
// started in it. To leave it standing, Release it; any process can then Reopen it, List the labs that stand, and take one down with Down, which also
// cleans up after a process that died. Everything wants root and a kernel with network namespaces, veth, bridge and, for impairments, tun.
// Tests get a lab that skips and cleans up by itself from package labtest, and see what they left behind with package leakcheck.
//
// # Working in it
//
// Host.Dial, Host.Listen and Host.Command give connections, listeners and processes inside a host; Host.Do runs any code there. Host.Sysctl,
// Host.Neighbors and Host.Link look at the host's state.
//
// # Impairing links
//
// The kernels this project is tested on have no netem. Lab.Impair puts an Element between a host and the switch: it reads frames from one tap and
// writes them to another, when and if its two Schedulers say so. An Impairment is delay, jitter, loss, reordering, duplication and a rate limit; it can be changed at
// run time, and its random choices repeat for one seed. Frames are MTU-sized there, as on a wire: use an element with a zero Impairment where
// segmentation offload would hide what is measured.
//
// The element carries about 1 Gb/s on one core and leaves frames late by some tens of microseconds on an idle machine; Stats tells the truth about
// both. Its threads share the process's GOMAXPROCS processors with everything else in it: in a program that also computes, raise that by two for each element.
//
// # Measuring
//
// Host.Capture records packets, to a pcap file and as a Trace that counts resets, retransmissions, connections and gaps. On the client's side Stream
// measures a download, PingPong response times, and ReadTCPInfo asks the kernel. Ramp and Noise are streams whose every byte is known:
// Ramp shows the exact position of a lost, doubled or shifted byte, Noise is an incompressible file that can be read from anywhere.
//
// The package does not know what a migration is, and no production code imports it.
package netnslab
