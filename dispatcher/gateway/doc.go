// SPDX-License-Identifier: Apache-2.0

// Package gateway reads the servers' half of signalling at the default gateway of the servers (SARA 8). With direct server return a reply
// does not pass the dispatcher; but it is the reply that says which ports a session's media will use. So the gateway reads it and tells the dispatcher,
// and it holds the reply back until the dispatcher has confirmed that the announced flows are installed: the client's first media packet
// finds its way prepared.
//
//	client ──► dispatcher ──► server            BPF at the gateway's interface: of the packets that a service's servers send
//	   ▲           ▲  │          │              from its signalling address, those with content go to a tap, all
//	   │    Halves │  │Installed │ reply        others pass untouched
//	   │           │  ▼          ▼
//	   └──────────  gateway ◄────┘
//
// # The way of a packet
//
// Divert leads it to user space; it is not a copy. Its TCP segment is put in its place in the stream (gopacket's reassembly; a stream that began before
// the gateway did is taken up where it is), and a Parser turns the bytes into halves, the encoded form of what the server has said. The
// packet waits until all of its bytes are parsed and every half that came out of them is confirmed, but never longer than Config.Hold: then
// it goes on its way, and Stats counts it. Packets of one flow leave in the order in which they came. Bare acknowledgements are not
// diverted and may overtake.
//
// # When something fails
//
// The dispatcher is away: replies are late by Config.Hold, and halves are kept, and sent when it is back, for Config.Keep. The process is killed:
// its programs and its tap go with it, and packets pass. It hangs: the programs find that its heartbeat is old, and packets pass.
// Bounds are exceeded: packets are released without being read. What is lost is at worst what was in the process when it died, which TCP and SIP repeat.
//
// # Trust
//
// The connection to the dispatcher is authenticated in both directions (package handoff/peer): a Server takes halves from configured gateways only. At layer 2 a gateway
// takes signalling for a service from the link-layer addresses of that service's servers only; others who use its address are
// refused and counted, once the addresses of all servers are known.
//
// # What it does not do
//
// It installs nothing and decides nothing, and knows no protocol: parsers come from Protocols. IP fragments, IPv6 packets with extension headers and VLAN tags (watch
// the VLAN's own interface) pass unread. It does not route: the kernel does.
package gateway
