// SPDX-License-Identifier: Apache-2.0

// Package synproxy dispatches TCP connections without a socket at the dispatcher, for protocols in which the client speaks first: HTTP,
// TLS, redis. The client's SYN is answered by BPF with a cookie; its first packets, whole, are shown to a function that decides; then they
// go on to a backend, whose kernel makes the connection of them (package cookie). No handoff is left to do.
//
//	client      dispatcher: BPF           this process             backend: BPF, kernel, server
//	SYN ──────► cookie
//	    ◄────── SYN-ACK
//	ACK ──────► swallowed
//	data ─────► ring ───────────────────► Decide ──► table
//	                                      data ──────────────────► connection, accept()
//	    ◄───────────────────────────────────────────────────────── answer
//	data ─────► forwarder ───────────────────────────────────────► connection
//
// # In call order
//
//	p, err := synproxy.Open(synproxy.Config{Interface: "eth0", Parameters: ..., Table: f, Decide: decide, Stack: injector})
//	f, err := forward.Open(...)             // afterwards: it must stand in front
//	err = p.SetNode(1, ifindex, mac, ownMAC)
//	err = p.AddService(vip)                 // one that the forwarder does not have as a service
//	err = p.Run(ctx)
//	err = p.Return(flow)                    // node 1's agent has told that it could not make the connection
//
// Decide sees Request.Bytes grow until it knows. A request that is not complete within Config.Patience, or larger than
// Config.RequestBytes, goes to Config.Stack, which makes it a connection of this host's own, to be handed off by the way of sockets; so does
// one whose client has been silent for so long that backends would not know its cookie. Nobody acknowledges what a client sends before a
// backend has it: that is why slow requests must leave.
//
// # States of a flow in the program
//
//	         valid cookie          Forward
//	(none) ─────────────► waiting ─────────► given: later packets meet the forwarder first; what comes here is a late copy
//	  ▲                    │  │  └─────────► local: to this host's stack
//	  │     Reset, time    │  └────────────► refused: the process speaks with the client (Answer)
//	  └────────────────────┘
//
// A SYN leaves no trace. The first valid acknowledgement makes an entry, of an LRU map: who has many clients that say nothing loses entries,
// and the client's first data make a new one as long as the cookie is valid (70 to 100 s).
//
// The flow is the dispatcher's own in the table (Adopt, node 0) before a backend is sent anything, and the backend's (Commit) after all of it:
// so nothing is sent if the table has no room, no packet overtakes the first one, and what an agent says of the end of the flow is
// heard. What the client sends in between comes by the ring and follows. A client that answers within these
// microseconds can see packets overtake one another.
//
// # What is sent to backends
//
// The client's own packets, with other Ethernet addresses. Into their unused urgent pointer goes the distance of the client in
// milliseconds, as the handshake has shown it: backends take it for their first round-trip time.
//
// # Limits
//
//   - Without timestamps a client gets neither SACK nor window scaling, and one of four MSS (package cookie).
//   - SYNs of clients with an MSS below 536 (IPv6: 1220), which the kernel's function refuses, are left to this host's stack. So is
//     whatever has IPv4 options, IPv6 extension headers, VLAN tags, or is a fragment.
//   - SYNs with data (TCP Fast Open) are dropped; clients send them again without.
//   - Answers have no retransmission of their own: the client's makes them repeat. They fit one segment.
//   - The secret's strength is 28 bits: who sends a million packets a second that guess a cookie opens a connection from a false address every
//     few minutes, as with the kernel's SYN cookies.
//   - What arrives for no known flow is dropped and counted (Config.PassStrays).
//   - TCP only; one interface; backends on the same link.
//
// # What it needs
//
// Linux 6.6 with BTF, CONFIG_NET_XGRESS; CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON and CAP_NET_RAW. Backends need more: see package cookie.
package synproxy
