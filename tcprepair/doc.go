// SPDX-License-Identifier: Apache-2.0

// Package tcprepair takes one live TCP connection out of a Linux kernel and puts it into another one, without the peer noticing:
// sequence numbers, options, unread, unacknowledged and unsent bytes, half-closed states.
//
// # In call order
//
// On the source, which has the connection's descriptor:
//
//	o, err := tcprepair.ReadOutline(fd)   // addresses and socket options, before the freeze; can be sent ahead
//	// hold the flow's packets, in both directions
//	err = tcprepair.Freeze(fd)            // refuses what cannot be moved, and leaves it as it was
//	s, err := o.Take(fd, tcprepair.Limits{})
//	b, err := s.AppendBinary(nil)         // off to the target
//
// On the target, whose host has the connection's local address:
//
//	v, err := tcprepair.Reserve(o, tcprepair.RestoreConfig{})  // as soon as the outline is here
//	s, err := tcprepair.Decode(b, tcprepair.Limits{})
//	r, err := v.Restore(s)                // the connection exists, frozen and silent; r.FD() can be passed on
//	// point the path at this host, release the held packets to it
//	err = r.Thaw()                        // it lives
//
// And on the source again Discard(fd), or, if any step before Thaw failed, Resume(fd), after which the connection goes on as if nothing had
// happened. Who does not care for some microseconds leaves the outline out: Take and Restore do everything.
//
// The two must not both live. Thaw on one host and Resume on the other are both possible, and nothing here prevents doing both: to decide which
// is the business of package handoff.
//
// # What it needs
//
// Linux 5.14 for everything; CAP_NET_ADMIN in the user namespace that owns the network namespace, in which the calling thread must be;
// CAP_NET_RAW for connections that one side has closed already. A 64-bit little-endian machine.
//
// # What it does not do
//
// It holds no packets, knows no firewall and no path, starts no goroutine and decides nothing. It refuses listeners,
// handshakes, MPTCP, kernel TLS and signed segments, and connections with unread urgent data. It cannot carry out-of-order data
// (the peer sends it again), ECN, or what congestion control has learnt: that is in Snapshot.Advice for those who can seed it.
//
// # Traps that it knows
//
// Among those that TCP_REPAIR sets and other users have fallen into: a restored connection would send segments of 524 bytes for
// the rest of its life (see connect); one that negotiated no window scaling would announce windows as if it had;
// TCP_NOTSENT_LOWAT would swallow unsent data; a segment acknowledged in part would be sent from its first byte on with the
// sequence number of its middle; unread data behind urgent data would be lost.
package tcprepair
