// SPDX-License-Identifier: Apache-2.0

// Package forward is the dispatcher's data path: it sends the packets of flows that were handed to a server on to that
// server, at layer 2, and lets everything else pass to the host's own stack. The client's packets keep their addresses,
// ports, sequence numbers and TTL; only the Ethernet addresses change (SARA S23, NEC N3, N5). Servers hold the service's
// address and answer the client directly.
//
// It takes the entry's part over from the gate (package handoff/gate), with the same words and methods, for more flows: TCP
// and UDP over IPv4 and IPv6, a million of them for each IP version. On one interface it stands in front of the gate,
// which sees what it passes. Open the gate first: who comes later stands in front.
//
// # What is known of a flow
//
//	         SYN or first datagram to a service              RST, FIN
//	unknown ───────────────────────────────────► fresh ───┐  from the client   ┌─► closing ─┐
//	(pass)      node in turn, epoch 1, TCP fresh   │ any  │                    │            │
//	   ▲   ────────────────────────────────────►   └────► established ─────────┘            │
//	   │                  Adopt                           │  ▲  Commit: epoch+1, new owner  │
//	   │                                                  │  └──────────────────────────────┤
//	   │   two sweeps later                               ▼  Forget, idle too long          ▼
//	   └──────────────────── gone ◄──── dead ◄──────────────────────────────────────────────┘
//	                                     │ ▲
//	                                     └─┘ a new SYN or datagram takes it back, as a new flow
//
// The owner of a flow is a node; node 0 is this host, whose flows pass to its stack. A pure SYN decides anew whatever is known,
// except for a handshake that is not over, where it is a repetition: a port that is used again must not follow an old flow. It
// follows that who can forge a client's address and guess its port can end its connection with one SYN, as with any
// forwarder that does so.
//
// The epoch, the owner and these states are one 64-bit word that only compare-and-exchange changes, inside the kernel: Commit is
// atomic against every other Commit and against the packets, and the write that decides the owner switches the path.
// ROUTE_FRESH ends with the first packet after the SYN; before that, Commit is refused.
//
// # The order of calls
//
//	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}, PinPath: "/sys/fs/bpf/rehome-forward"})
//	go f.Run(ctx)
//	err = f.SetNode(1, ifindex, mac, ownMAC)
//	err = f.SetService(vip, []gate.Node{0})       // new connections are the dispatcher's
//	route, err := f.Commit(flow, 1, 1)            // handed to node 1: the path is switched
//	err = f.Forget(flow)                          // its server has reported the end
//	err = f.UDP().SetService(vip, []gate.Node{1}) // datagrams go to the nodes at once
//
// # Announced flows
//
// Signalling promises flows (RTP, FTP's data connections) before their first packet: Announce says who gets them. A first packet
// that no flow of the table fits is looked up among the announcements, with both ports, with any client port, with any server port, and
// only then among the services. First packets are datagrams, SYNs, and, for connections that a server has opened, SYN-ACKs. The flow that
// begins so is marked (Known.Secondary), counts as established for admission, and is told to Watch; nothing waits for that. Without
// announcements the look-up costs one load.
//
// # Packets that come by user space
//
// With Config.Divert there is a tap (rhfwd0) through which packets go before their servers get them: not copies, the packets.
//
//	               first datagram            Assign                 Send of the last
//	UDP service ────────────────► undecided ────────► waiting ────────────────────────► the short way
//	(Handling.Divert)              │  ▲                │  ▲
//	                               └──┘ datagrams      └──┘ datagrams: they come by the tap as well
//
// So no datagram overtakes another. The kernel numbers what it diverts, and Send of packet n ends the diversion in one step with the
// comparison that n was the last. The other kind are flows that are signalling (Handling.Inspect, Inspect, Announcement.Inspect, Assign):
// all that their clients say comes by the tap, for as long as they live, so that user space may announce flows before it sends the
// packet on. Of TCP, bare acknowledgements go straight.
//
// Divert renews a deadline in the kernel while it waits and between packets. When that lapses (the process is dead, or stuck), signalling
// goes straight to its servers, and datagrams of undecided flows are dropped and counted (Stats.Unread). What is in the tap at
// that moment is lost with the process. Handling.MaxWaiting bounds each service's frames in the tap, Config.DivertQueue all of them.
//
// Fragments of a datagram come by the tap as well, the later ones after the first, are put together there (bounded in number, bytes and time),
// and go on as they came once Send says where. Of a datagram that stays incomplete nothing goes on (Stats.Incomplete). Segments of TCP are not
// put together: the first fragment of an undecided flow is dropped, of signalling sent straight (Stats.Split counts all of these).
//
//	f, err := forward.Open(forward.Config{Interfaces: []string{"eth0"}, Divert: true})
//	err = f.UDP().SetHandling(vip, forward.Handling{Divert: true})
//	go f.Divert(ctx, func(d forward.Diverted) { ... f.UDP().Assign(d.Flow, node, false) ... f.Send(d, node) })
//
// # Admission
//
// SetAdmission has the kernel refuse a share of a service's new flows (SYNs and first datagrams), and of the datagrams of its
// established ones (SARA S13): both probabilities change in one write. A flow's service is in its entry, so this costs an established
// flow one load. A refused SYN that is repeated is decided about anew.
//
// # The table
//
// A plain BPF hash costs two to four cache misses on a random flow. This table is two arrays: 16 tags of flows to a cache
// line, and one slot for each tag, of half a cache line (IPv4) or one (IPv6). A flow's hash names two lines, one of which
// has it. The lines together fit a last-level cache, so a packet costs about one miss; tags are compared without a branch, which the processor could not foresee. MaxFlows fill 83 % of the slots, and
// all have room; from there on, flows are met whose two lines are both full. Then the SYN, or first datagram, is dropped and counted
// (Stats.Full): live flows are never evicted. Stats.Pressure tells in time. The hash is keyed at random; nobody outside
// can aim at a line.
//
// What is at the limit because of a flood of SYNs recovers by itself: the fuller the table, the sooner handshakes that
// nothing came after are forgotten, from 130 s down to 4 s.
//
// # Fragments, errors, and what passes untouched
//
// ICMP and ICMPv6 errors (unreachable, fragmentation needed, packet too big, time exceeded, parameter problem) go to the
// owner of the flow whose packet they quote. Echo and everything else of ICMP passes.
//
// The first fragment of a packet has the ports and goes where its flow goes; the later ones follow it, for 30 s, by
// addresses, protocol and identification. One that arrives before its first passes, and its packet is lost. Of TCP, the
// first must have the whole header. ICMP errors in fragments pass.
//
// These pass untouched: VLAN-tagged frames (name the VLAN's own interface), ARP, neighbour discovery, frames for another MAC
// address, runts, lengths that contradict one another, source-routed packets, more than four IPv6 extension headers. In mode
// XDP, turn the interface's VLAN offload (rxvlan) off: the program cannot see a tag that the device has taken away. A packet
// whose owner's node is unknown, or that came from where it would go, is dropped and counted.
//
// # Death and restart
//
// With Config.PinPath tables and programs stay when the process dies, and go on. The next Open replaces the programs one by
// one, without a gap; it keeps the size of the tables. One process at a time: the later one takes over. The tables carry the version of
// their layout: those of the first are taken over with their flows and services; of one that is not known, Open returns ErrLayout and touches nothing.
//
// # Shortcuts
//
// In a container the interface is one end of a veth pair. In mode TCX, Run looks whether frames may go on at its other end at once (package
// shortcut, which says what they pass by then), asks a neighbour by that way, and uses it once it is answered: one of the two passages through
// the pair that a forwarded packet costs is saved. Every second it looks again; Ways tells what is used, and why not. A queueing discipline
// or a program of others at the way out keeps frames on the whole way; so does Config.NoShortcut, which captures of what is sent need.
// A process that ends with Config.PinPath leaves the way as it is; the next takes the whole one until it has seen for itself.
//
// # What it does not do
//
// It knows nothing of sockets, chooses servers only by taking turns (or leaves that to user space), and tracks no connection: a flow ends when an agent
// reports it (Forget), or by silence. It translates no address and builds no tunnel: servers must be on a link of this
// host's. It defragments only what user space is to see. Package nft forwards by nftables, for kernels that refuse BPF.
package forward
