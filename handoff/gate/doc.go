// SPDX-License-Identifier: Apache-2.0

// Package gate decides, on one host, what becomes of the packets of single TCP connections: they pass, are kept for a
// while, or go to another host at layer 2. It is one BPF program per direction of an interface, one table of flows, and a
// tap for each interface in which the kernel queues what is kept. No firewall rule is involved, and a packet of any other
// flow costs one look-up.
//
// # What is known of a flow
//
// The route says who serves the flow. The hold lies over it, with a deadline that the kernel itself respects, so that a
// dead agent leaves no lock behind:
//
//	             Adopt, SYN to a service                          Forward(node, ttl)
//	unknown ───────────────────────────► entry's record     unknown ────────────► stray's route
//	(pass)     PASS | FORWARD(node),  ◄─┐ epoch 1, 2, …     (pass)                FORWARD(node)
//	   ▲       never expires            │ Commit: epoch+1,     ▲                      │
//	   └─ Forget, IdleTimeout ─┘        └─ new owner           └─ ttl, Release, SYN ◄─┘
//
//	 over any of them:
//	           Hold(Ingress|Egress, ttl)           Release ─► held frames to the local stack, in order
//	 no hold ──────────────────────────► held ───┬ Forward ─► held frames returned, route switched
//	    ▲                                 Take   ├ Unhold  ─► held frames thrown away
//	    └────────────────────────────────────────┴ ttl     ─► as Release, or on along the route
//
// A route is one 64-bit word (epoch, node, verdict) that only compare-and-exchange changes, inside the kernel: Commit is
// atomic against every other Commit and against the packets, and the write that decides the owner is the write that
// switches the path.
//
// # Roles
//
// The source of a migration calls Hold, freezes and takes its snapshot, and ends with Forward, whose frames it brings to
// the target (or with Release, if the move failed). The target calls Hold before it restores, then, once it is the owner,
// Replay with the source's frames and Release. The entry of a service address calls SetNode and SetService once, and Commit for
// each move. One host may be all three.
//
//	g, err := gate.Open(gate.Config{Interfaces: []string{"eth0"}})
//	go g.Run(ctx)
//	err = g.Hold(flow, gate.Ingress|gate.Egress, 200*time.Millisecond)
//	held, err := g.Release(flow)
//
// # Order
//
// Release opens the gate only when everything the kernel has held is delivered, so no packet overtakes another. It keeps a
// client at full rate from sending on meanwhile by keeping back the host's own acknowledgements, of which the last goes out
// when the gate is open. What a host with several queues or a veth reorders before the gate stays reordered.
//
// # What passes untouched, on purpose
//
// Everything but whole TCP segments over IPv4 (with or without options) and IPv6 (with up to four extension headers):
// VLAN-tagged frames (name the VLAN's own interface in the configuration), fragments, source-routed packets, frames whose
// lengths contradict one another, frames for another MAC address, ICMP errors. Bytes on a loopback or tunnel path that
// does not cross a gated interface are not seen.
//
// # What it does not do
//
// It knows nothing of sockets and snapshots, does not decide who should serve a flow, speaks to no other host, and does not
// track the state of connections: an entry forgets a flow when told to, or when it has been idle for long.
package gate
